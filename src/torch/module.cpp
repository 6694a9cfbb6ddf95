// SPDX-License-Identifier: Apache-2.0
#include "src/torch/module.hpp"

#include <cstdlib>
#include <dlfcn.h>

#include "fmt/format.h"

#include "src/core/shared_module.hpp"

namespace sinkscope {
namespace {

constexpr const char* kFileName = "sinkscope_torch.so";
bool loaded = false;

TorchModule load() {
  TorchModule module;
  const char* chosen = std::getenv("SINKSCOPE_TORCH_MODULE");
  const SharedModule found = load_shared_module(kFileName, chosen);
  if (!found.problem.empty()) {
    module.unavailable = fmt::format("libtorch could not be loaded: {}", found.problem);
  } else if (found.library != nullptr) {
    using Fill = void (*)(TorchModule*);
    const auto fill = reinterpret_cast<Fill>(dlsym(found.library, "sinkscope_fill_torch_module"));
    if (fill != nullptr) {
      fill(&module);
    } else {
      module.unavailable = fmt::format("{} is not a libtorch module of sinkscope", found.path);
    }
  } else if (chosen != nullptr) {
    module.unavailable = fmt::format("SINKSCOPE_TORCH_MODULE is {}, which does not exist", chosen);
  } else {
    module.unavailable =
        fmt::format("needs libtorch: this build has no {} (build with -DSINKSCOPE_TORCH=ON)", kFileName);
  }
  return module;
}

}  // namespace

const TorchModule& torch_module() {
  static const TorchModule kModule = load();
  loaded = true;
  return kModule;
}

bool torch_module_loaded() {
  return loaded;
}

}  // namespace sinkscope
