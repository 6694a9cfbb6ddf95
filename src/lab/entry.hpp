// SPDX-License-Identifier: Apache-2.0
// What the loader and the module agree on.
#pragma once

#include <functional>
#include <string>

#include "src/inputs/path.hpp"
#include "src/lab/lab.hpp"

namespace sinkscope::lab {

// A path by its name; `exact` is what the name "exact" stands for, faults planted around it too. Throws InputError.
using FindPath = std::function<Path(const std::string& name, const Path& exact)>;

using OpenLab = Lab* (*)(const LabConfig* config, const FindPath* find_path);
inline constexpr const char* kOpenLab = "sinkscope_open_lab";

}  // namespace sinkscope::lab
