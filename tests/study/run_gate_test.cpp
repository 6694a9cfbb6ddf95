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
  run.replays[1].error2.sink[0] = 1e-6;
  const double whole = std::sqrt(sum(run.replays[0].norm2));
  EXPECT_NEAR(worst_errors(run, "mine")[3].error, 1e-3 / (3e-3 * whole), 1e-9);
}

TEST(GradientErrors, OfAHeadThatGetsNoneAreAllOfIt) {
  TrainingRun run = run_of(0.01);
  run.replays[0].norm2.sink[0] = run.replays[1].error2.sink[0] = 1e-8;
  EXPECT_LT(worst_errors(run, "mine")[3].error, 0.02) << "next to nothing, but some";
  run.replays[1].norm2.sink[0] = 0;
  EXPECT_EQ(worst_errors(run, "mine")[3].error, 1);
}

TEST(GradientErrors, OfAGradientThatIsZeroOnBothSidesIsNone) {
  TrainingRun run = run_of(0.01);  // rollouts that are all as good: no advantage, no gradient
  run.replays[0].norm2 = run.replays[1].norm2 = run.replays[1].error2 = all_of(0);
  for (const GradientError& of : worst_errors(run, "mine")) {
    EXPECT_EQ(of.error, 0);
    EXPECT_EQ(of.gain, 1);
  }
  EXPECT_EQ(judge_run(run, kLimits).verdict, Verdict::kPassed);
  run.replays[1].norm2 = run.replays[1].error2 = all_of(1e-12);
  EXPECT_EQ(judge_run(run, kLimits).verdict, Verdict::kFailed);
}

TEST(GradientErrors, SayWhichWayTheWholeGradientPoints) {
  TrainingRun run = run_of(0.01);
  EXPECT_GT(worst_direction(run, "mine")->cosine, 0.999);
  run.replays[1].error2 = all_of(16);  // |g - g_e|^2 of g = -g_e, all of them 4
  EXPECT_NEAR(worst_direction(run, "mine")->cosine, -1, 1e-12);
  EXPECT_EQ(worst_direction(run, "mine")->step, 3);
  run.replays[1].error2 = all_of(8);  // at right angles
  EXPECT_NEAR(worst_direction(run, "mine")->cosine, 0, 1e-12);
  EXPECT_FALSE(worst_direction(run, "other"));
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

TEST(RunGate, AGapAtOneStepFails) {
  TrainingRun run = run_of(0.01);
  run.steps.resize(50, run.steps[0]);
  for (std::size_t step = 0; step < run.steps.size(); ++step)
    run.steps[step].step = static_cast<std::int64_t>(step);
  EXPECT_EQ(judge_run(run, kLimits).verdict, Verdict::kPassed);
  run.steps[47].log_prob_gap = 0.2;
  const RunVerdict judged = judge_run(run, kLimits);
  EXPECT_EQ(judged.verdict, Verdict::kFailed);
  ASSERT_EQ(judged.sentences.size(), 1U);
  EXPECT_EQ(judged.sentences[0],
            "the mean |log-probability gap| to the rollouts is 0.2 at step 47, limit 0.05");
}

TEST(RunGate, EachPhaseIsJudgedByItsOwnPath) {
  TrainingRun run = run_of(0.2);
  run.steps.resize(5, run.steps[0]);
  for (std::size_t step = 0; step < run.steps.size(); ++step) {
    run.steps[step].step = static_cast<std::int64_t>(step);
    run.steps[step].phase = step < 4 ? 0 : 1;
  }
  run.training_path = "other";
  run.phase_paths = {"mine", "other"};
  EXPECT_EQ(judge_run(run, kLimits).verdict, Verdict::kFailed) << "step 3 was trained through mine";
  run.phase_paths = {"other", "mine"};
  run.steps[0].log_prob_gap = NAN;
  EXPECT_TRUE(worst_training_errors(run).empty()) << "mine was only replayed at step 3";
}

TEST(RunGate, WhatIsNotFiniteFails) {
  for (double StepRow::*value : {&StepRow::loss, &StepRow::gradient_norm}) {
    TrainingRun run = run_of(0.01);
    run.steps[0].*value = INFINITY;
    EXPECT_EQ(judge_run(run, kLimits).verdict, Verdict::kFailed);
    run.steps[0].log_prob_gap = NAN;
    run.replays.clear();
    EXPECT_EQ(judge_run(run, kLimits).verdict, Verdict::kFailed) << "with nothing else to judge by";
  }
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
