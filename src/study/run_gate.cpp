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

// Mean over the steps that have one; NaN where none has.
double mean_gap(const TrainingRun& run) {
  double total = 0;
  int count = 0;
  for (const StepRow& row : run.steps) {
    if (std::isnan(row.log_prob_gap)) continue;
    total += row.log_prob_gap;
    ++count;
  }
  return total / count;
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
  const std::vector<GradientError> errors = worst_errors(run, run.training_path);
  const double gap = mean_gap(run);
  if (errors.empty() && std::isnan(gap)) {
    judged.verdict = Verdict::kSkipped;
    judged.sentences.push_back("no step has a counterfactual gradient of the training path or rollouts");
    return judged;
  }
  for (const StepRow& row : run.steps) {
    if (std::isfinite(row.loss)) continue;
    fail(fmt::format("the loss of step {} is {}, wanted a finite one", row.step, row.loss));
    break;
  }
  for (const GradientError& of : errors) {
    if (of.error <= limits.gradient_error) continue;
    fail(fmt::format("the gradient of {} at step {} is off by {:.3g} times exact attention's, limit {:.3g}",
                     text(of.block), of.step, of.error, limits.gradient_error));
  }
  if (!std::isnan(gap) && !(gap <= limits.log_prob_gap)) {
    fail(fmt::format("the mean |log-probability gap| to the rollouts is {:.3g}, limit {:.3g}", gap,
                     limits.log_prob_gap));
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
