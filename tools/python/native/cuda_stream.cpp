// SPDX-License-Identifier: Apache-2.0
// torch's C function for the stream lies in libtorch_cuda, which a torch without CUDA does not have. It is looked up
// when the first CUDA tensor comes, so that one binary serves both.
#include "tools/python/native/cuda_stream.hpp"

#include <dlfcn.h>

#include "tools/python/native/tensors.hpp"

namespace sinkscope_python {
namespace {

using GetStream = std::int32_t (*)(std::int32_t device, void** stream);

GetStream find_get_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  require(library != nullptr, "libtorch_cuda.so is not loaded, wanted a torch with CUDA");
  void* symbol = dlsym(library, "aoti_torch_get_current_cuda_stream");
  require(symbol != nullptr,
          "this torch has no aoti_torch_get_current_cuda_stream, wanted torch 2.11 or later");
  return reinterpret_cast<GetStream>(symbol);
}

}  // namespace

void* current_cuda_stream(std::int32_t device) {
  static const GetStream get_stream = find_get_stream();
  void* stream = nullptr;
  require(get_stream(device, &stream) == 0, "torch gives no stream of device " + std::to_string(device));
  return stream;
}

}  // namespace sinkscope_python
