// SPDX-License-Identifier: Apache-2.0
#include "tools/sinkscope/data_files.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/core/error.hpp"

namespace sinkscope::cli {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> roots() {
  if (const char* chosen = std::getenv("SINKSCOPE_DATA")) return {chosen};
  std::error_code error;
  const fs::path above = fs::read_symlink("/proc/self/exe", error).parent_path().parent_path();
  return {above / "share" / "sinkscope", above};
}

}  // namespace

std::string find_data_file(const std::string& name, const std::string& folder, const std::string& extension,
                           const char* what) {
  std::error_code error;
  if (fs::is_regular_file(name, error)) return name;
  for (const fs::path& root : roots()) {
    const fs::path candidate = root / folder / (name + extension);
    if (fs::is_regular_file(candidate, error)) return candidate.string();
  }
  throw InputError(fmt::format("{} '{}' is neither a file nor one of those that come with the tool ({})",
                               what, name, fmt::join(data_file_names(folder, extension), ", ")));
}

std::vector<std::string> data_file_names(const std::string& folder, const std::string& extension) {
  std::vector<std::string> names;
  for (const fs::path& root : roots()) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(root / folder, error)) {
      if (entry.path().extension() == extension) names.push_back(entry.path().stem().string());
    }
    if (!names.empty()) break;
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string find_data_path(const std::string& path) {
  std::error_code error;
  if (fs::exists(path, error)) return path;
  for (const fs::path& root : roots()) {
    if (fs::exists(root / path, error)) return (root / path).string();
  }
  throw InputError(fmt::format("{} is neither here nor among the files that come with the tool", path));
}

}  // namespace sinkscope::cli
