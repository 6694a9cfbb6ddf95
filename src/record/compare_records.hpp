// SPDX-License-Identifier: Apache-2.0
// What got worse between two records.
#pragma once

#include <string>
#include <vector>

#include "src/record/record.hpp"

namespace sinkscope {

enum class ChangeKind { kWorse, kBetter, kAdded, kRemoved, kInputsDiffer };

// One (problem, path, tensor) whose verdict or worst head changed.
struct Change {
  ChangeKind kind = ChangeKind::kWorse;
  std::string problem, path, tensor, metric;
  std::int64_t batch = -1, head = -1;
  double before = 0;
  double after = 0;
  std::string sentence;
};

// Worse: a verdict that ranks worse than it did (passed, skipped, mistrusted, inconclusive, failed, error), a
// path that was measured and no longer is, or a head's z_rms, z_row or z_max that grew by
// more than `factor` and is over `floor` of its limit. Problems are matched by name and inputs_sha256.
std::vector<Change> compare_records(const Record& before, const Record& after, double factor = 1.25,
                                    double floor = 0.5);

}  // namespace sinkscope
