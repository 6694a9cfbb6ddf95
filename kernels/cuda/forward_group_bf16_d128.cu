// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/forward_launch.cuh"

namespace sink_attention::cuda {

Status launch_forward_group_bf16_d128(const ForwardArguments& arguments, int blocks, void* stream) {
  return launch_forward<__nv_bfloat16, 128, TileRows::kOfGroup>(arguments, blocks, stream);
}

}  // namespace sink_attention::cuda
