// SPDX-License-Identifier: Apache-2.0
#include "src/paths/sink_kernel_cuda.hpp"

#ifdef SINKSCOPE_WITH_CUDA

#include <algorithm>
#include <cuda_runtime_api.h>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "fmt/format.h"

#include "src/paths/sink_kernel_run.hpp"

namespace sinkscope {
namespace {

void expect(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(fmt::format("{}: {}", what, cudaGetErrorString(error)));
}

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) {
    expect(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
  }
  DeviceMemory(DeviceMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&&) = delete;
  ~DeviceMemory() { cudaFree(data_); }
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

// Device memory of the kernel's with a band of NaN bits on both sides: a write outside is found.
class GuardedDeviceBuffer {
 public:
  GuardedDeviceBuffer(std::string name, std::size_t bytes)
      : name_(std::move(name)), size_(bytes), memory_(bytes + 2 * kBand) {
    expect(cudaMemset(memory_.data(), kPattern, size_ + 2 * kBand), "cudaMemset");
  }

  void* data() const { return memory_.data() + kBand; }
  std::size_t size() const { return size_; }

  void copy_to(std::byte* to) const {
    expect(cudaMemcpy(to, data(), size_, cudaMemcpyDeviceToHost), "cudaMemcpy");
  }

  void check() const {
    std::vector<unsigned char> bands(2 * kBand);
    const std::byte* const behind = memory_.data() + kBand + size_;
    expect(cudaMemcpy(bands.data(), memory_.data(), kBand, cudaMemcpyDeviceToHost), "cudaMemcpy");
    expect(cudaMemcpy(bands.data() + kBand, behind, kBand, cudaMemcpyDeviceToHost), "cudaMemcpy");
    if (!std::all_of(bands.begin(), bands.end(), [](unsigned char b) { return b == kPattern; }))
      throw std::runtime_error(fmt::format("the kernel wrote outside {}", name_));
  }

 private:
  static constexpr std::size_t kBand = 1024;
  static constexpr int kPattern = 0xFF;
  std::string name_;
  std::size_t size_;
  DeviceMemory memory_;
};

class CudaBackend {
 public:
  using Buffer = GuardedDeviceBuffer;

  const void* input(const std::byte* data, std::size_t bytes) {
    inputs_.emplace_back(bytes);
    expect(cudaMemcpy(inputs_.back().data(), data, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    return inputs_.back().data();
  }

  static std::size_t forward_workspace_bytes(const sa::Problem& p) {
    return sa::cuda::forward_workspace_bytes(p);
  }
  static std::size_t backward_workspace_bytes(const sa::Problem& p) {
    return sa::cuda::backward_workspace_bytes(p);
  }
  static sa::Status forward(const sa::ForwardParams& f) { return sa::cuda::forward(f, nullptr); }
  static sa::Status backward(const sa::BackwardParams& w) { return sa::cuda::backward(w, nullptr); }
  static void finish() { expect(cudaDeviceSynchronize(), "the kernel"); }

 private:
  std::vector<DeviceMemory> inputs_;
};

// A backend and what it was laid out for, to be kept together.
struct PreparedKernel {
  explicit PreparedKernel(const Case& c) : run(c, backend) {}
  CudaBackend backend;
  KernelRun<CudaBackend> run;
};

std::string backend_name() {
  const std::optional<std::string> device = cuda_kernel_device();
  if (!device) throw std::runtime_error(sa::cuda::available().message);
  return fmt::format("cuda {}", *device);
}

}  // namespace

bool cuda_kernel_built() {
  return true;
}

std::optional<std::string> cuda_kernel_device() {
  if (!sa::cuda::available().ok()) return std::nullopt;
  int device = 0;
  cudaDeviceProp properties;
  expect(cudaGetDevice(&device), "cudaGetDevice");
  expect(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties.name;
}

std::optional<std::string> cuda_kernel_unsupported(const Case& c) {
  const AttentionShape& shape = c.problem.shape;
  sa::Status status = sa::cuda::supports({.dtype = kernel_dtype(shape.dtype),
                                          .b = shape.b,
                                          .hq = shape.hq,
                                          .hkv = shape.hkv,
                                          .sq = shape.sq,
                                          .sk = shape.sk,
                                          .d = shape.d});
  if (status.ok()) status = sa::cuda::available();
  return status.ok() ? std::nullopt : std::optional<std::string>(status.message);
}

PathRun run_cuda_kernel(const Case& c) {
  std::string name = backend_name();
  CudaBackend backend;
  return {run_kernel(c, backend), std::move(name)};
}

PreparedPath prepare_cuda_kernel(const Case& c) {
  PreparedPath prepared;
  prepared.backend = backend_name();
  const auto kernel = std::make_shared<PreparedKernel>(c);
  prepared.forward = [kernel] { kernel->run.forward(); };
  if (kernel->run.has_backward()) prepared.backward = [kernel] { kernel->run.backward(); };
  prepared.outputs = [kernel] {
    kernel->backend.finish();
    kernel->run.check();
    return kernel->run.outputs();
  };
  return prepared;
}

}  // namespace sinkscope

#else

#include <stdexcept>

namespace sinkscope {

bool cuda_kernel_built() {
  return false;
}

std::optional<std::string> cuda_kernel_device() {
  return std::nullopt;
}

std::optional<std::string> cuda_kernel_unsupported(const Case&) {
  return "this build has no CUDA backend";
}

PathRun run_cuda_kernel(const Case&) {
  throw std::logic_error("run_cuda_kernel() in a build without CUDA");
}

PreparedPath prepare_cuda_kernel(const Case&) {
  throw std::logic_error("prepare_cuda_kernel() in a build without CUDA");
}

}  // namespace sinkscope

#endif
