// SPDX-License-Identifier: Apache-2.0
// Planted faults: known mistakes made on purpose, to show that the gate sees them. Each wraps a healthy path.
#pragma once

#include <cstdint>
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
  bool across_groups =
      false;  // heads of one group take what belongs to others: it cannot hold for one group alone
};

const std::vector<Fault>& all_faults();

// Those that the calibration of a gate runs: the gate catches each wherever it can be seen.
const std::vector<Fault>& gate_faults();

// Throws InputError listing the known names.
const Fault& find_fault(std::string_view name);

// The mistake in one key/value head and the query heads that share it, of every batch entry; all others are healthy. The
// group is run with the mistake as a case of its own. Named fault:NAME@KV:PATH.
Path plant_in_group(const Fault& fault, const Path& healthy, std::int64_t kv_head);

// NAME or NAME@KV, planted. Throws InputError for a fault that is not known or a KV that is no number.
Path plant_by_name(std::string_view name, const Path& healthy);

}  // namespace sinkscope
