// SPDX-License-Identifier: Apache-2.0
// What the counterfactual gradients of a run say of a path: how far every head's gradient is from exact attention's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/record/run_record.hpp"
#include "src/spike/explained.hpp"

namespace sinkscope {

// `error` = |g_b - g_e,b| / max(|g_e,b|, kLeastShare |g_e|) of a block b; a head whose exact gradient is next to nothing
// beside the whole model's is measured against that, but one that gets no gradient where exact attention gives it some is off by all
// of it, 1. `gain` = |g_b| / |g_e,b|. Where both gradients are zero, as of rollouts
// that are all as good as each other, they are 0 and 1.
struct GradientError {
  std::string path;
  BlockName block;
  std::int64_t step = 0;
  double error = 0, gain = 0;
};
inline constexpr double kLeastShare = 3e-3;

// Paths that the run has counterfactuals of, exact attention left out, in the order of the record.
std::vector<std::string> compared_paths(const TrainingRun& run);

// The largest error of q, k, v and sink, over all steps and heads; none where the record has no counterfactual of the
// path. NaN counts as largest.
std::vector<GradientError> worst_errors(const TrainingRun& run, const std::string& path);

// The same, of each step's own training path.
std::vector<GradientError> worst_training_errors(const TrainingRun& run);

// The cosine of the angle between a path's whole gradient and exact attention's, from |g|^2 + |g_e|^2 - |g - g_e|^2. Under 0: the
// path leads away from where the truth leads.
struct Direction {
  std::int64_t step = 0;
  double cosine = 1;
};

// The least of the sampled steps, NaN counting as least; none where the path was not replayed.
std::optional<Direction> worst_direction(const TrainingRun& run, const std::string& path);

// Of one error at least; NaN counts as largest.
const GradientError& largest(const std::vector<GradientError>& errors);

}  // namespace sinkscope
