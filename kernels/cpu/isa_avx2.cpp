// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa_fp32.inl"

namespace sink_attention::cpu {

const IsaTable kAvx2Table = fp32_table("avx2");

}  // namespace sink_attention::cpu
