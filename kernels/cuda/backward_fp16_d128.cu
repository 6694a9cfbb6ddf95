// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/backward_launch.cuh"

namespace sink_attention::cuda {

template Status launch_backward<__half, 128>(const BackwardArguments&, const BackwardMaps&, cudaStream_t);

}  // namespace sink_attention::cuda
