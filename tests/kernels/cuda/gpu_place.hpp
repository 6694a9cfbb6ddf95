// SPDX-License-Identifier: Apache-2.0
// The GPU's memory as a place where tests run the kernel (tests/kernels/run_kernel.hpp).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cuda_runtime_api.h>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/sink_attention.h"
#include "tests/kernels/run_kernel.hpp"
#include "tests/require_gpu.hpp"

namespace sinkscope::testing_kernel {

inline void succeed(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) : bytes_(bytes) {
    succeed(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
  }
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  DeviceMemory& operator=(DeviceMemory&&) = delete;
  ~DeviceMemory() { cudaFree(data_); }

  std::byte* data() { return static_cast<std::byte*>(data_); }
  std::vector<std::byte> content() const {
    std::vector<std::byte> bytes(bytes_);
    succeed(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return bytes;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

// Waits for what it launched.
struct GpuPlace {
  using Memory = DeviceMemory;
  cudaStream_t stream = nullptr;
  bool bare = false;  // no bands and nothing written beforehand: for tools that watch every access

  std::size_t band() const { return bare ? 0 : 512; }
  static Memory holding(const std::vector<std::byte>& bytes) {
    Memory memory(bytes.size());
    succeed(cudaMemcpy(memory.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
    return memory;
  }
  Memory to_be_written(std::size_t bytes) const {
    Memory memory(bytes);
    if (!bare) succeed(cudaMemset(memory.data(), 0xFF, bytes), "cudaMemset");
    succeed(cudaDeviceSynchronize(), "clearing");
    return memory;
  }
  static std::size_t forward_workspace_bytes(const sa::Problem& p) {
    return sa::cuda::forward_workspace_bytes(p);
  }
  static std::size_t backward_workspace_bytes(const sa::Problem& p) {
    return sa::cuda::backward_workspace_bytes(p);
  }
  sa::Status forward(const sa::ForwardParams& f) const {
    return finished(sa::cuda::forward(f, stream), "the forward");
  }
  sa::Status backward(const sa::BackwardParams& w) const {
    return finished(sa::cuda::backward(w, stream), "the backward");
  }

 private:
  sa::Status finished(const sa::Status& launched, const char* what) const {
    if (launched.ok()) succeed(cudaStreamSynchronize(stream), what);
    return launched;
  }
};

class OnGpu : public testing::Test {
 protected:
  void SetUp() override { require_gpu(sa::cuda::available().message); }
};

// What bitwise comparison is of: every output of a run that went well.
inline const std::vector<std::byte>& bits_of(const KernelRun& run) {
  EXPECT_TRUE(run.forward.ok()) << run.forward.message;
  EXPECT_TRUE(run.backward.ok()) << run.backward.message;
  EXPECT_TRUE(run.guards_intact);
  return run.bits;
}

}  // namespace sinkscope::testing_kernel
