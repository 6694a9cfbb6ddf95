// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "src/scenario/scenario.hpp"

namespace sinkscope::cli {

// A scenario file, or one that comes with the tool, to be trained on this machine: its text is found here or among the shipped
// files. Throws InputError.
Scenario scenario_for(const std::string& name, bool cuda, int threads);

}  // namespace sinkscope::cli
