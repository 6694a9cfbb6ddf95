// SPDX-License-Identifier: Apache-2.0
#include "src/torch/module.hpp"

#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>

#include "fmt/format.h"

namespace sinkscope {
namespace {

constexpr const char* kFileName = "sinkscope_torch.so";
bool loaded = false;

std::vector<std::filesystem::path> candidates() {
  if (const char* chosen = std::getenv("SINKSCOPE_TORCH_MODULE")) return {chosen};
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  // A test program stands one folder below the command.
  return {folder / kFileName, folder.parent_path() / "lib" / "sinkscope" / kFileName,
          folder.parent_path() / kFileName};
}

TorchModule load() {
  TorchModule module;
  for (const std::filesystem::path& path : candidates()) {
    std::error_code error;
    if (!std::filesystem::exists(path, error)) continue;
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* reason = dlerror();
      module.unavailable =
          fmt::format("libtorch could not be loaded: {}", reason == nullptr ? "unknown reason" : reason);
      return module;
    }
    using Fill = void (*)(TorchModule*);
    const auto fill = reinterpret_cast<Fill>(dlsym(library, "sinkscope_fill_torch_module"));
    if (fill == nullptr) {
      module.unavailable = fmt::format("{} is not a libtorch module of sinkscope", path.string());
      return module;
    }
    fill(&module);
    return module;
  }
  if (const char* chosen = std::getenv("SINKSCOPE_TORCH_MODULE")) {
    module.unavailable = fmt::format("SINKSCOPE_TORCH_MODULE is {}, which does not exist", chosen);
    return module;
  }
  module.unavailable =
      fmt::format("needs libtorch: this build has no {} (build with -DSINKSCOPE_TORCH=ON)", kFileName);
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
