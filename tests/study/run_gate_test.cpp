// SPDX-License-Identifier: Apache-2.0
// Limits on training runs: what is over them fails, with the head and the numbers.
#include "src/study/run_gate.hpp"

#include <cmath>

#include "gtest/gtest.h"

#include "src/study/blocks.hpp"
#include "src/study/gradient_errors.hpp"

namespace sinkscope {
namespace {

constexpr RunShape kShape = {2, 2, 1};
constexpr RunLimits kLimits = {0.1, 0.05};

BlockValues all_of(double value) {
  return to_arrays(std::vector<double>(all_blocks(kShape).size(), value), kShape);
}

// One sampled step; every block of the path is off by 1 %, q of layer 1 head 1 by `error`.
TrainingRun run_of(double error, double gap = 0.01) {
  TrainingRun run;
  run.name = "r";
  run.training_path = "mine";
  run.shape = kShape;
  StepRow step;
  step.log_prob_gap = gap;
  run.steps = {step};
  ReplayRow exact = {3, "exact", 1, all_of(4), all_of(0)};
  ReplayRow mine = {3, "mine", 1, all_of(4), all_of(4e-4)};
  mine.error2.q[3] = 4 * error * error;
  run.replays = {exact, mine};
  return run;
}

TEST(GradientErrors, AreTheWorstOfEveryTensor) {
  const std::vector<GradientError> errors = worst_errors(run_of(0.5), "mine");
  ASSERT_EQ(errors.size(), 4U);
  EXPECT_EQ(text(errors[0].block), "layer 1 q of head 1");
  EXPECT_EQ(errors[0].step, 3);
  EXPECT_NEAR(errors[0].error, 0.5, 1e-12);
  EXPECT_NEAR(errors[0].gain, 1, 1e-12);
  EXPECT_NEAR(errors[3].error, 0.01, 1e-12);
  EXPECT_EQ(compared_paths(run_of(0.5)), std::vector<std::string>{"mine"});
  EXPECT_TRUE(worst_errors(run_of(0.5), "other").empty());
}

TEST(GradientErrors, OfAHeadThatIsNextToNothingAreBesideTheWholeGradient) {
  TrainingRun run = run_of(0.01);
  run.replays[0].norm2.sink[0] = 0;
  run.replays[1].error2.sink[0] = 1e-8;
  const double whole = std::sqrt(sum(run.replays[0].norm2));
  EXPECT_NEAR(worst_errors(run, "mine")[3].error, 1e-4 / (1e-3 * whole), 1e-9);
}

TEST(RunGate, PassesAndFailsByHeadAndByGap) {
  EXPECT_EQ(judge_run(run_of(0.09), kLimits).verdict, Verdict::kPassed);
  const RunVerdict wrong_head = judge_run(run_of(0.2), kLimits);
  EXPECT_EQ(wrong_head.verdict, Verdict::kFailed);
  ASSERT_EQ(wrong_head.sentences.size(), 1U);
  EXPECT_EQ(wrong_head.sentences[0],
            "the gradient of layer 1 q of head 1 at step 3 is off by 0.2 times exact attention's, limit 0.1");
  EXPECT_EQ(judge_run(run_of(0.01, 0.06), kLimits).verdict, Verdict::kFailed);
  EXPECT_EQ(judge_run(run_of(0.01, std::nan("")), kLimits).verdict, Verdict::kPassed) << "no rollouts";
  EXPECT_EQ(judge_run(run_of(std::nan("")), kLimits).verdict, Verdict::kFailed);
}

TEST(RunGate, ALossThatIsNotFiniteFails) {
  TrainingRun run = run_of(0.01);
  run.steps[0].loss = INFINITY;
  EXPECT_EQ(judge_run(run, kLimits).verdict, Verdict::kFailed);
}

TEST(RunGate, NothingMeasuredIsNotPassed) {
  TrainingRun run = run_of(0.01, std::nan(""));
  run.replays.clear();
  const RunVerdict judged = judge_run(run, kLimits);
  EXPECT_EQ(judged.verdict, Verdict::kSkipped);
  EXPECT_EQ(exit_code({judged}), ExitCode::kEnvironment);
  EXPECT_EQ(exit_code({judged, judge_run(run_of(0.2), kLimits)}), ExitCode::kFailed);
  EXPECT_EQ(exit_code({judge_run(run_of(0.01), kLimits)}), ExitCode::kPassed);
}

TEST(RunGate, LimitsAreReadStrictly) {
  EXPECT_EQ(parse_run_limits("gradient_error = 0.1\nlog_prob_gap = 0.05\n", "x"), kLimits);
  EXPECT_THROW(parse_run_limits("gradient_error = 0.1\n", "x"), InputError);
  EXPECT_THROW(parse_run_limits("gradient_error = 0\nlog_prob_gap = 1\n", "x"), InputError);
  EXPECT_THROW(parse_run_limits("gradient_error = 1\nlog_prob_gap = 1\nother = 1\n", "x"), InputError);
}

}  // namespace
}  // namespace sinkscope
