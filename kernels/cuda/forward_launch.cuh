// SPDX-License-Identifier: Apache-2.0
// Launches the forward kernel for one type, head dim and kind of tile.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/check.hpp"
#include "kernels/cuda/forward.cuh"
#include "kernels/cuda/forward.hpp"

namespace sink_attention::cuda {

template <typename Config>
Status launch_forward_as(const ForwardArguments& arguments, int blocks, void* stream) {
  constexpr std::size_t kBytes = sizeof(ForwardPlan<Config>);
  const cudaError_t error = cudaFuncSetAttribute(
      forward_kernel<Config>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes));
  if (error != cudaSuccess) return check_launch("the forward");
  forward_kernel<Config><<<blocks, Config::kThreads, kBytes, static_cast<cudaStream_t>(stream)>>>(arguments);
  return check_launch("the forward");
}

template <typename Element, int kDim, TileRows kRows>
Status launch_forward(const ForwardArguments& arguments, int blocks, void* stream) {
  return arguments.residual != nullptr
             ? launch_forward_as<ForwardConfig<Element, kDim, kRows, true>>(arguments, blocks, stream)
             : launch_forward_as<ForwardConfig<Element, kDim, kRows, false>>(arguments, blocks, stream);
}

}  // namespace sink_attention::cuda
