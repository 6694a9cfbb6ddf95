// SPDX-License-Identifier: Apache-2.0
// What the counterfactual gradients of a run say of a path: how far every head's gradient is from exact attention's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/record/run_record.hpp"
#include "src/spike/explained.hpp"

namespace sinkscope {

// `error` = |g_b - g_e,b| / max(|g_e,b|, kLeastShare |g_e|) of a block b; a head whose exact gradient is next to nothing
// beside the whole model's is measured against that. `gain` = |g_b| / |g_e,b|. Where both gradients are zero, as of rollouts
// that are all as good as each other, they are 0 and 1.
struct GradientError {
  std::string path;
  BlockName block;
  std::int64_t step = 0;
  double error = 0, gain = 0;
};
inline constexpr double kLeastShare = 1e-3;

// Paths that the run has counterfactuals of, exact attention left out, in the order of the record.
std::vector<std::string> compared_paths(const TrainingRun& run);

// The largest error of q, k, v and sink, over all steps and heads; none where the record has no counterfactual of the
// path. NaN counts as largest.
std::vector<GradientError> worst_errors(const TrainingRun& run, const std::string& path);

// The same, of each step's own training path.
std::vector<GradientError> worst_training_errors(const TrainingRun& run);

// Of one error at least; NaN counts as largest.
const GradientError& largest(const std::vector<GradientError>& errors);

}  // namespace sinkscope
