// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa_fp32.inl"

namespace sink_attention::cpu {

const IsaTable kAvx512Table = fp32_table("avx512");

}  // namespace sink_attention::cpu
