// SPDX-License-Identifier: Apache-2.0
// Launches the kernels of the backward for one element type and head dim.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/backward_main.cuh"
#include "kernels/cuda/backward_postprocess.cuh"
#include "kernels/cuda/backward_preprocess.cuh"
#include "kernels/cuda/check.hpp"

namespace sink_attention::cuda {

struct BackwardMaps {
  CUtensorMap q, k, v, dout;
};

template <typename Element, int kD>
Status launch_backward(const BackwardArguments& a, const BackwardMaps& maps, cudaStream_t stream) {
  const std::int32_t key_blocks = a.b * a.hkv * a.key_tiles;
  const std::int32_t row_blocks = a.b * a.hq * a.row_tiles;
  const bool any_matrix = a.dq.data != nullptr || a.dk.data != nullptr || a.dv.data != nullptr;

  // Each kernel may start while the one before it ends, and waits for it before it reads.
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.stream = stream;
  config.attrs = &early;

  if (key_blocks > 0) {
    backward_keys_kernel<Element, kD><<<key_blocks, kPreprocessThreads, 0, stream>>>(a);
    if (const Status status = check_launch("the backward over keys"); !status.ok()) return status;
  }
  if (row_blocks > 0) {
    config.gridDim = row_blocks;
    config.blockDim = kPreprocessThreads;
    config.numAttrs = key_blocks > 0 ? 1 : 0;
    cudaLaunchKernelEx(&config, backward_rows_kernel<Element, kD>, a);
    if (const Status status = check_launch("the backward over rows"); !status.ok()) return status;
  }
  if (a.items.items > 0 && any_matrix) {
    constexpr auto kKernel = backward_main_kernel<Element, kD>;
    config.gridDim = a.items.items;
    config.blockDim = kBackwardThreads;
    config.dynamicSmemBytes = sizeof(BackwardPlan<Element, kD>);
    config.numAttrs = row_blocks > 0 ? 1 : 0;
    cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(config.dynamicSmemBytes));
    cudaLaunchKernelEx(&config, kKernel, a, maps.q, maps.k, maps.v, maps.dout);
    if (const Status status = check_launch("the backward"); !status.ok()) return status;
  }
  PostprocessBlocks blocks;
  blocks.dsinks = a.dsinks != nullptr ? a.hq : 0;
  blocks.parts = a.part_sums != nullptr ? key_blocks : 0;
  blocks.dq = a.dq.data != nullptr ? row_blocks : 0;
  const std::int32_t all = blocks.dsinks + 2 * blocks.parts + blocks.dq;
  if (all == 0) return {};
  config.gridDim = all;
  config.blockDim = kPostprocessThreads;
  config.dynamicSmemBytes = 0;
  config.numAttrs = row_blocks > 0 || a.items.items > 0 ? 1 : 0;
  cudaLaunchKernelEx(&config, backward_postprocess_kernel<Element, kD>, a, blocks);
  return check_launch("the end of the backward");
}

extern template Status launch_backward<__nv_bfloat16, 64>(const BackwardArguments&, const BackwardMaps&,
                                                          cudaStream_t);
extern template Status launch_backward<__nv_bfloat16, 128>(const BackwardArguments&, const BackwardMaps&,
                                                           cudaStream_t);
extern template Status launch_backward<__half, 64>(const BackwardArguments&, const BackwardMaps&,
                                                   cudaStream_t);
extern template Status launch_backward<__half, 128>(const BackwardArguments&, const BackwardMaps&,
                                                    cudaStream_t);

}  // namespace sink_attention::cuda
