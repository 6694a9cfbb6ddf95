// SPDX-License-Identifier: Apache-2.0
// What the loader and the module agree on.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/inputs/path.hpp"
#include "src/lab/lab.hpp"

namespace sinkscope::lab {

// A mistake that a path has around it.
struct Planted {
  std::string name;
  // Why the mistake cannot be seen in a case (a window's in a layer without one), or nothing.
  std::function<std::optional<std::string>(const Case&)> invisible;
};

// A path that computes every layer of a model: where one of its mistakes cannot be seen, as without that mistake.
struct FoundPath {
  Path path;
  std::vector<Planted> planted;
};

// By its name; `exact` is what the name "exact" stands for, faults planted around it too. Throws InputError.
using FindPath = std::function<FoundPath(const std::string& name, const Path& exact)>;

using OpenLab = Lab* (*)(const LabConfig* config, const FindPath* find_path);
inline constexpr const char* kOpenLab = "sinkscope_open_lab";

}  // namespace sinkscope::lab
