// SPDX-License-Identifier: Apache-2.0
#include "src/torch/cuda.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <array>
#include <dlfcn.h>

namespace sinkscope::torch_paths {
namespace {

CudaDevice device;

// The driver's own entry points, taken by name so that no CUDA header is needed: CUresult and CUdevice are
// ints there, and 0 is success.
template <typename... Arguments>
bool call_driver(void* library, const char* name, Arguments... arguments) {
  const auto function = reinterpret_cast<int (*)(Arguments...)>(dlsym(library, name));
  return function != nullptr && function(arguments...) == 0;
}

// Describes the first visible GPU in `device`; why there is none, or empty.
std::string ask_driver() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return "no GPU here: there is no driver (libcuda.so.1)";
  int count = 0;
  if (!call_driver(library, "cuInit", 0U) || !call_driver(library, "cuDeviceGetCount", &count) || count == 0)
    return "no GPU here: the driver finds none";

  constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
  int id = 0, major = 0, minor = 0;
  std::array<char, 256> name{};
  const bool described =
      call_driver(library, "cuDeviceGet", &id, 0) &&
      call_driver(library, "cuDeviceGetName", name.data(), static_cast<int>(name.size()), id) &&
      call_driver(library, "cuDeviceGetAttribute", &major, kMajor, id) &&
      call_driver(library, "cuDeviceGetAttribute", &minor, kMinor, id) &&
      call_driver(library, "cuDeviceTotalMem_v2", &device.memory, id);
  if (!described) return "no GPU here: the driver does not describe it";
  device.name = name.data();
  device.capability = 10 * major + minor;
  return "";
}

std::string load_cuda() {
  // First the driver, which is quick to ask; libtorch_cuda is large.
  if (std::string reason = ask_driver(); !reason.empty()) return reason;
  // The global scope, as libtorch's own libraries look for each other there.
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    const char* reason = dlerror();
    return std::string("libtorch_cuda could not be loaded: ") +
           (reason == nullptr ? "unknown reason" : reason);
  }
  return at::hasCUDA() ? "" : "libtorch sees no GPU";
}

}  // namespace

const std::string& cuda_unavailable() {
  static const std::string kReason = load_cuda();
  return kReason;
}

const CudaDevice& cuda_device() {
  return device;
}

std::function<void()> cuda_gemm(int n) {
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
  const at::Tensor a = at::randn({n, n}, options), b = at::randn({n, n}, options);
  at::Tensor product = at::empty({n, n}, options);
  return [a, b, product]() mutable {
    const at::NoGradGuard no_grad;
    at::mm_out(product, a, b);
  };
}

}  // namespace sinkscope::torch_paths
