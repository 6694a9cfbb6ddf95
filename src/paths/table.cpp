// SPDX-License-Identifier: Apache-2.0
#include "src/paths/table.hpp"

#include <algorithm>
#include <array>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/core/error.hpp"
#include "src/faults/fault.hpp"
#include "src/paths/sink_kernel.hpp"
#include "src/torch/module.hpp"

namespace sinkscope {
namespace {

constexpr std::string_view kRecordedPrefix = "recorded.";
constexpr std::string_view kFaultPrefix = "fault:";

// Stands in the table for a path whose library could not be loaded, and says why.
Path unavailable_path(const TorchPathName& name, const std::string& reason) {
  Path path;
  path.name = name.name;
  path.summary = name.summary;
  path.backends = "libtorch (cpu)";
  path.unsupported = [reason](const Case&) { return std::optional<std::string>(reason); };
  path.run = [reason](const Case&, const PathOptions&) -> PathRun { throw EnvironmentError(reason); };
  return path;
}

std::vector<Path> make_table() {
  std::vector<Path> table = {sink_kernel_path()};
  const TorchModule& torch = torch_module();
  for (const TorchPathName& name : kTorchPathNames) {
    const auto found = std::find_if(torch.paths.begin(), torch.paths.end(),
                                    [&](const Path& p) { return p.name == name.name; });
    table.push_back(found != torch.paths.end() ? *found : unavailable_path(name, torch.unavailable));
  }
  return table;
}

Path recorded_path(const std::string& name, const Case& c) {
  const auto found = c.recorded.find(name);
  if (found == c.recorded.end()) {
    std::vector<std::string_view> known;
    for (const auto& [recorded, outputs] : c.recorded) known.push_back(recorded);
    throw InputError(fmt::format("{} has no recorded outputs of '{}', it has {}", c.name, name,
                                 known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", "))));
  }
  Path path;
  path.name = fmt::format("{}{}", kRecordedPrefix, name);
  path.summary = "outputs that the capture brings";
  path.backends = "recorded";
  path.unsupported = [](const Case&) { return std::optional<std::string>(); };
  path.run = [outputs = found->second](const Case&, const PathOptions&) {
    return PathRun{outputs, "recorded"};
  };
  return path;
}

}  // namespace

const std::vector<Path>& all_paths() {
  static const std::vector<Path> kTable = make_table();
  return kTable;
}

Path find_path(std::string_view name, const Case& c) {
  if (name.starts_with(kRecordedPrefix))
    return recorded_path(std::string(name.substr(kRecordedPrefix.size())), c);
  if (name.starts_with(kFaultPrefix)) {
    const std::string_view rest = name.substr(kFaultPrefix.size());
    const std::size_t colon = rest.find(':');
    if (colon == std::string_view::npos)
      throw InputError(fmt::format("path '{}': wanted fault:NAME:PATH or fault:NAME@KV:PATH", name));
    return plant_by_name(rest.substr(0, colon), find_path(rest.substr(colon + 1), c));
  }
  // The kernel needs no library: it is found without loading libtorch.
  if (name == "sink_kernel") return sink_kernel_path();
  for (const Path& path : all_paths()) {
    if (path.name == name) return path;
  }
  std::vector<std::string_view> known = {"sink_kernel"};
  for (const TorchPathName& torch : kTorchPathNames) known.push_back(torch.name);
  throw InputError(fmt::format("path '{}' is not known, wanted {}, recorded.NAME or fault:NAME:PATH", name,
                               fmt::join(known, ", ")));
}

}  // namespace sinkscope
