// SPDX-License-Identifier: Apache-2.0
// What a person reads of training runs.
#include "src/report/runs.hpp"

#include <cmath>

#include "gtest/gtest.h"

#include "src/study/blocks.hpp"

namespace sinkscope {
namespace {

constexpr RunShape kShape = {1, 2, 1};

BlockValues all_of(double value) {
  return to_arrays(std::vector<double>(all_blocks(kShape).size(), value), kShape);
}

TrainingRun run_of(const std::string& name) {
  TrainingRun run;
  run.name = name;
  run.training_path = "flash_attention_2";
  run.rollout_path = "sink_kernel";
  run.shape = kShape;
  for (int step = 0; step < 10; ++step) {
    StepRow row;
    row.step = step;
    row.reward = step < 5 ? 1.5 : 0.25;
    row.gradient_norm = step == 7 ? 9 : 1;
    row.log_prob_gap = 0.125;
    row.ratio_max = 10.0 + step;
    row.effective_samples = 1 - 0.05 * step;
    run.steps.push_back(row);
  }
  ReplayRow exact = {4, "exact", 1, all_of(1), all_of(0)};
  ReplayRow flash = {4, "flash_attention_2", 1, all_of(1), all_of(0.01)};
  flash.norm2.q[1] = 9;
  flash.error2.q[1] = 6.25;
  flash.norm2.sink = {0, 0};
  flash.error2.sink = {1, 1};
  run.replays = {exact, flash};
  return run;
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
}

TEST(Runs, AnErrorThatIsNoNumberIsTheWorst) {
  RunRecord record;
  record.runs = {run_of("accident")};
  record.runs[0].replays[1].error2.v[0] = NAN;
  expect_part(render_runs(record),
              "off by nan times the length of exact attention's in the worst head, layer 0 v");
}

TEST(Runs, AGradientThatPointsAwayIsSaid) {
  RunRecord record;
  record.runs = {run_of("accident")};
  EXPECT_EQ(render_runs(record).find("points away"), std::string::npos);
  record.runs[0].replays[1].error2 = all_of(6);
  expect_part(render_runs(record), "; at step 4 the whole points away from it, cosine -");
}

TEST(Runs, AreALineEachAndSentences) {
  RunRecord record;
  record.complete = true;
  record.attributes = {{"scenario_name", "s"}, {"seed", "3"}};
  record.runs = {run_of("accident")};
  const std::string text = render_runs(record);
  EXPECT_TRUE(text.starts_with("s, seed 3\n")) << text;
  expect_part(text, "1.5 -> 0.25");
  expect_part(text, "2.5 x3 L0 h1");
  expect_part(text, "no gradient");
  expect_part(text,
              "off by 2.5 times the length of exact attention's in the worst head, layer 0 q of head 1 at "
              "step 4, and the "
              "sinks get none");
  expect_part(text,
              "mean |log-probability gap| 0.125 -> 0.125, importance ratios up to 19, effective sample size "
              "down to 0.55");
}

TEST(Runs, SpikesAreShownWithWhatTheyAreMadeOf) {
  RunRecord record;
  record.runs = {run_of("accident")};
  SpikeRow spike;
  spike.step = 7;
  spike.z = 21.5;
  spike.gradient_norm = 9;
  spike.median = 1;
  spike.exact_norm = 1.25;
  spike.fraction = 0.99;
  spike.verdict = "removed";
  spike.share = all_of(0);
  spike.share.v[0] = -0.25;
  spike.share.q[1] = 1.25;
  record.runs[0].spikes = {spike};
  record.runs[0].causes = {{7, "sink_ignored", 1.01}, {7, "rounding and rest", -0.001}};
  const std::string text = render_runs(record);
  expect_part(text, "(unfinished)");
  expect_part(text, "0.99 removed       layer 0 q of head 1 1.25, layer 0 v of kv head 0 -0.25");
  expect_part(text, "; sink_ignored 1.01, rounding and rest 0.00");
}

TEST(Runs, VerdictsEndInAWord) {
  const std::string failed =
      render_run_verdicts({{"a", Verdict::kPassed, {}}, {"b", Verdict::kFailed, {"it is off"}}});
  expect_part(failed, "  - b: it is off\n");
  expect_part(failed, "FAILED  runs: 1 passed, 1 failed\n");
  expect_part(render_run_verdicts({{"a", Verdict::kPassed, {}}}), "PASSED  runs: 1 passed, 0 failed\n");
  expect_part(render_run_verdicts({{"a", Verdict::kSkipped, {"nothing"}}}), "NOTHING JUDGED");
}

}  // namespace
}  // namespace sinkscope
