// SPDX-License-Identifier: Apache-2.0
// libtorch's GPU half, which the module does not link: it is loaded where a GPU is there.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

namespace sinkscope::torch_paths {

// Loads libtorch_cuda once. Why libtorch has no GPU here, or empty.
const std::string& cuda_unavailable();

// The GPU that libtorch takes: the first visible one. Only where cuda_unavailable() is empty.
struct CudaDevice {
  std::string name;        // "NVIDIA H200"
  int capability = 0;      // 90 for compute capability 9.0
  std::size_t memory = 0;  // bytes, in use or not
};
const CudaDevice& cuda_device();

// Lays out two random bf16 matrices of n x n; each call of the result enqueues one product of them, 2 n^3
// operations.
std::function<void()> cuda_gemm(int n);

}  // namespace sinkscope::torch_paths
