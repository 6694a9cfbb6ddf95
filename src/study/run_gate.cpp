// SPDX-License-Identifier: Apache-2.0
#include "src/study/run_gate.hpp"

#include <cmath>
#include <filesystem>

#include "fmt/format.h"

#include "src/core/file.hpp"
#include "src/settings/settings.hpp"
#include "src/study/gradient_errors.hpp"

namespace sinkscope {
namespace {

// The step that is farthest from its rollouts; null where none has any.
const StepRow* widest_gap(const TrainingRun& run) {
  const StepRow* widest = nullptr;
  for (const StepRow& row : run.steps) {
    if (std::isnan(row.log_prob_gap)) continue;
    if (widest == nullptr || row.log_prob_gap > widest->log_prob_gap) widest = &row;
  }
  return widest;
}

// What training broke down at, in a sentence; empty where it did not.
std::string breakdown(const TrainingRun& run) {
  for (const StepRow& row : run.steps) {
    if (!std::isfinite(row.loss))
      return fmt::format("the loss of step {} is {}, wanted a finite one", row.step, row.loss);
    if (!std::isfinite(row.gradient_norm))
      return fmt::format("the gradient norm of step {} is {}, wanted a finite one", row.step,
                         row.gradient_norm);
  }
  return "";
}

}  // namespace

RunLimits parse_run_limits(std::string_view toml, const std::string& name) {
  Settings settings = Settings::parse(toml, "spike gate " + name);
  RunLimits limits;
  limits.gradient_error = settings.positive("gradient_error");
  limits.log_prob_gap = settings.positive("log_prob_gap");
  settings.done();
  return limits;
}

RunLimits read_run_limits(const std::string& path) {
  return parse_run_limits(read_file(path, "spike gate"), std::filesystem::path(path).stem().string());
}

RunVerdict judge_run(const TrainingRun& run, const RunLimits& limits) {
  RunVerdict judged = {run.name, Verdict::kPassed, {}};
  const auto fail = [&](std::string sentence) {
    judged.verdict = Verdict::kFailed;
    judged.sentences.push_back(std::move(sentence));
  };
  const std::vector<GradientError> errors = worst_training_errors(run);
  const StepRow* const widest = widest_gap(run);
  const std::string broken = breakdown(run);
  if (errors.empty() && widest == nullptr && broken.empty()) {
    judged.verdict = Verdict::kSkipped;
    judged.sentences.push_back("no step has a counterfactual gradient of the training path or rollouts");
    return judged;
  }
  if (!broken.empty()) fail(broken);
  for (const GradientError& of : errors) {
    if (of.error <= limits.gradient_error) continue;
    fail(fmt::format("the gradient of {} at step {} is off by {:.3g} times exact attention's, limit {:.3g}",
                     text(of.block), of.step, of.error, limits.gradient_error));
  }
  if (widest != nullptr && !(widest->log_prob_gap <= limits.log_prob_gap)) {
    fail(fmt::format("the mean |log-probability gap| to the rollouts is {:.3g} at step {}, limit {:.3g}",
                     widest->log_prob_gap, widest->step, limits.log_prob_gap));
  }
  return judged;
}

ExitCode exit_code(const std::vector<RunVerdict>& verdicts) {
  std::vector<VerdictRow> rows;
  for (const RunVerdict& judged : verdicts) {
    VerdictRow row;
    row.verdict = judged.verdict;
    rows.push_back(row);
  }
  return exit_code(rows);
}

}  // namespace sinkscope
