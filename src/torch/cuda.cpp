// SPDX-License-Identifier: Apache-2.0
#include "src/torch/cuda.hpp"

#include <ATen/Context.h>
#include <dlfcn.h>

namespace sinkscope::torch_paths {
namespace {

std::string load_cuda() {
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

}  // namespace sinkscope::torch_paths
