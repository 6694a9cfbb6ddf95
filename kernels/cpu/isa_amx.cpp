// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/backward.inl"
#include "kernels/cpu/engine_amx.inl"
#include "kernels/cpu/forward.inl"

namespace sink_attention::cpu {

const IsaTable kAmxTable = {"amx",
                            ForwardScratch<AmxEngine>::bytes,
                            BackwardScratch<AmxEngine>::bytes,
                            forward_rows<AmxEngine, DType::kBf16>,
                            backward_rows<AmxEngine, DType::kBf16>,
                            store_rows};

}  // namespace sink_attention::cpu
