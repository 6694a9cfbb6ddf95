// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <dlfcn.h>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/core/shared_module.hpp"
#include "src/faults/fault.hpp"
#include "src/lab/entry.hpp"
#include "src/paths/table.hpp"

namespace sinkscope::lab {
namespace {

constexpr const char* kFileName = "sinkscope_lab.so";

struct Module {
  OpenLab open = nullptr;
  std::string unavailable;
};

Module load() {
  // Two pools of threads take turns here: libtorch's must not spin while the kernel's work.
  setenv("OMP_WAIT_POLICY", "passive", 0);
  const SharedModule found = load_shared_module(kFileName);
  if (!found.problem.empty())
    return {nullptr, fmt::format("the spike lab could not be loaded: {}", found.problem)};
  if (found.library == nullptr)
    return {
        nullptr,
        fmt::format("the spike lab needs libtorch: this build has no {} (build with -DSINKSCOPE_TORCH=ON)",
                    kFileName)};
  const auto open = reinterpret_cast<OpenLab>(dlsym(found.library, kOpenLab));
  if (open == nullptr) return {nullptr, fmt::format("{} is not a spike lab of sinkscope", found.path)};
  return {open, ""};
}

const Module& module() {
  static const Module kModule = load();
  return kModule;
}

// A layer in which the mistake cannot be seen is computed by the healthy path.
Path where_visible(const Path& fault, const Path& healthy) {
  Path path = fault;
  path.unsupported = healthy.unsupported;
  path.run = [fault, healthy](const Case& c, const PathOptions& options) {
    return fault.unsupported(c) ? healthy.run(c, options) : fault.run(c, options);
  };
  return path;
}

// fault:NAME:PATH may hold another fault, or exact attention, which no table has.
FoundPath find(const std::string& name, const Path& exact) {
  if (name == "exact") return {exact, {}};
  constexpr std::string_view kFault = "fault:";
  if (name.starts_with("recorded."))
    throw InputError(
        fmt::format("path is '{}', wanted one that computes: a capture's recorded outputs do not", name));
  if (!name.starts_with(kFault)) return {find_path(name, Case{}), {}};
  const std::size_t colon = name.find(':', kFault.size());
  if (colon == std::string::npos) throw InputError(fmt::format("path is '{}', wanted fault:NAME:PATH", name));
  FoundPath found = find(name.substr(colon + 1), exact);
  const std::string mistake = name.substr(kFault.size(), colon - kFault.size());
  const Path fault = plant_by_name(mistake, found.path);
  found.planted.push_back({mistake, fault.unsupported});
  found.path = where_visible(fault, found.path);
  return found;
}

}  // namespace

std::string why_no_lab() {
  return module().unavailable;
}

void check_path(const std::string& name) {
  Path exact;
  exact.name = "exact";
  exact.unsupported = [](const Case&) { return std::nullopt; };
  find(name, exact);
}

std::unique_ptr<Lab> open_lab(const LabConfig& config) {
  if (module().open == nullptr) throw EnvironmentError(module().unavailable);
  const FindPath finder = find;
  return std::unique_ptr<Lab>(module().open(&config, &finder));
}

}  // namespace sinkscope::lab
