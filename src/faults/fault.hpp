// SPDX-License-Identifier: Apache-2.0
// Planted faults: known mistakes made on purpose, to show that the gate sees them. Each wraps a healthy path.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "src/inputs/path.hpp"

namespace sinkscope {

struct Fault {
  std::string name;     // "sink_ignored"
  std::string summary;  // one line for people
  // Wraps `healthy` in the mistake; the result's unsupported() also says where the mistake could not be seen.
  Path (*plant)(const Path& healthy);
};

const std::vector<Fault>& all_faults();

// Those that the calibration of a gate runs: the gate catches each wherever it can be seen.
const std::vector<Fault>& gate_faults();

// Throws InputError listing the known names.
const Fault& find_fault(std::string_view name);

}  // namespace sinkscope
