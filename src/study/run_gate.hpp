// SPDX-License-Identifier: Apache-2.0
// Limits on a training run, and what they make of its record.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "src/core/error.hpp"
#include "src/gate/gate.hpp"
#include "src/record/run_record.hpp"

namespace sinkscope {

// An infinite limit is not checked.
struct RunLimits {
  double gradient_error = 0;  // of the training path, GradientError::error of any head at any sampled step
  double log_prob_gap = 0;    // StepRow::log_prob_gap, the mean over a step's tokens, of any step
  bool operator==(const RunLimits&) const = default;
};

// Throws InputError naming the key, the value seen and the value wanted; unknown keys are errors.
RunLimits parse_run_limits(std::string_view toml, const std::string& name);
RunLimits read_run_limits(const std::string& path);

struct RunVerdict {
  std::string run;
  Verdict verdict = Verdict::kPassed;  // or kFailed, or kSkipped: nothing was measured
  std::vector<std::string> sentences;  // what failed, with the value and the limit
};

// Fails, besides, where a loss or a gradient norm is not finite.
RunVerdict judge_run(const TrainingRun& run, const RunLimits& limits);

// As exit_code() of src/gate: kEnvironment where nothing was judged.
ExitCode exit_code(const std::vector<RunVerdict>& verdicts);

}  // namespace sinkscope
