// SPDX-License-Identifier: Apache-2.0
#include "src/core/shared_module.hpp"

#include <dlfcn.h>
#include <filesystem>
#include <vector>

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> places(const std::string& file, const char* chosen) {
  if (chosen != nullptr) return {chosen};
  std::error_code error;
  const fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  return {folder / file, folder.parent_path() / "lib" / "sinkscope" / file, folder.parent_path() / file};
}

}  // namespace

SharedModule load_shared_module(const std::string& file, const char* chosen) {
  for (const fs::path& path : places(file, chosen)) {
    std::error_code error;
    if (!fs::exists(path, error)) continue;
    SharedModule module = {dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL), path.string(), ""};
    if (module.library != nullptr) return module;
    const char* reason = dlerror();
    module.problem = reason == nullptr ? "unknown reason" : reason;
    return module;
  }
  return {};
}

}  // namespace sinkscope
