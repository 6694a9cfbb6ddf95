// SPDX-License-Identifier: Apache-2.0
// The fault table on a reduced set: explain names what can be seen, with its scope, nothing healthy, and nothing that it
// does not have; the gate passes nothing that can be seen.
#include "src/calibrate/fault_table.hpp"

#include <algorithm>

#include "fmt/format.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "src/calibrate/fault_expectation.hpp"
#include "src/calibrate/fault_scope.hpp"
#include "src/core/error.hpp"
#include "src/explain/explain.hpp"

namespace sinkscope {
namespace {

FaultTableOptions options_of(const std::vector<std::string>& lines, int withheld_seeds) {
  FaultTableOptions options;
  for (const std::string& line : lines) options.problems.push_back(parse_problem(line));
  options.withheld_seeds = withheld_seeds;
  return options;
}

std::string text_of(const std::vector<FaultMiss>& misses) {
  std::string text;
  for (const FaultMiss& miss : misses)
    text += fmt::format("{} on {}: {}\n", miss.fault, miss.problem_line, miss.what);
  return text;
}

Gate default_gate() {
  return read_gate("reports/gates/default.toml");
}

TEST(FaultTable, NamesWhatCanBeSeenAndTheGatePassesNoneOfIt) {
  const FaultTable table = run_fault_table(
      default_gate(), options_of({"capture=datasets/captures/packed_layer1.safetensors",
                                  "b1 hq8 hkv2 sq100 sk100 d64 bf16 causal seed=21",
                                  "b1 hq4 hkv2 sq110 sk110 d64 bf16 causal w40 sink=3 seed=22",
                                  "b1 hq4 hkv4 sq96 sk96 d64 bf16 causal w200 sink=-3 seed=23",
                                  "b1 hq4 hkv1 sq120 sk120 d64 bf16 causal docs=40,20,60 seed=24",
                                  "b2 hq4 hkv2 sq75 sk75 d64 fp16 causal seed=25",
                                  "b2 hq4 hkv2 sq90 sk90 d64 bf16 causal seqlens=60,81 seed=12",
                                  "b1 hq8 hkv1 sq70 sk110 d64 bf16 causal seed=26",
                                  "b1 hq4 hkv2 sq80 sk80 d64 fp32 causal w24 seed=27",
                                  "b1 hq64 hkv64 sq96 sk96 d64 bf16 causal w32 fill=loud seed=28"},
                                 0));
  EXPECT_TRUE(table.holds()) << summary_of(table) << text_of(table.misses);
  const FaultTally all = table.total(), healthy = table.healthy();
  EXPECT_GE(all.right, kLeastExplained * all.visible) << text_of(table.misses);
  EXPECT_EQ(all.caught, all.visible) << text_of(table.misses);
  EXPECT_EQ(healthy.right, 10);
  for (const FaultRow& row : table.faults) {
    if (row.name == kHealthyRow) continue;
    EXPECT_GT(row.everywhere.visible, 0) << row.name << " was never seen";
    EXPECT_EQ(row.quiet.caught, row.quiet.visible) << row.name;
  }
  EXPECT_GT(table.problems.back().loudness_ratio, 1000);
  // The quiet head's gradient that is gone: other criteria look at whole tensors.
  const auto lost = std::find_if(table.faults.begin(), table.faults.end(),
                                 [](const FaultRow& row) { return row.name == "dq_head_lost"; });
  EXPECT_EQ(lost->quiet.caught, 1);
  EXPECT_EQ(lost->quiet.cosine, 0);
}

TEST(FaultTable, LeavesUnexplainedWhatIsWithheld) {
  const FaultTable table =
      run_fault_table(default_gate(), options_of({"b1 hq4 hkv2 sq110 sk110 d64 bf16 causal w40 seed=29"}, 1));
  EXPECT_GT(table.total().withheld, 25);
  EXPECT_EQ(table.total().withheld_named, 0) << text_of(table.withheld_named);
  FaultTableOptions options = options_of({"b1 hq4 hkv2 sq110 sk110 d64 bf16 causal w40 seed=29"}, 0);
  options.faults = {"dq_scaled"};  // no catalogue has it
  const FaultTable one = run_fault_table(default_gate(), options);
  EXPECT_EQ(one.faults.at(1).everywhere.right, 1) << text_of(one.misses);
  EXPECT_EQ(one.total().visible, 0);  // it is not in the share
}

TEST(FaultTable, SaysWhatTheGatePasses) {
  Gate blind = default_gate();
  blind.formats[DType::kBf16].lse = {1e9, 1e9, 1e9};
  FaultTableOptions options = options_of({"b1 hq2 hkv2 sq80 sk80 d64 bf16 causal seed=30"}, 0);
  options.faults = {"lse_log2"};
  // z_rms over 1.26 counts as visible whatever the gate allows.
  const FaultTable table = run_fault_table(blind, options);
  EXPECT_EQ(table.total().visible, 1);
  EXPECT_EQ(table.total().caught, 0);
  EXPECT_FALSE(table.holds());
  ASSERT_EQ(table.misses.size(), 1U);
  EXPECT_NE(to_markdown(table, blind, "the command").find("the gate passes it"), std::string::npos);
  EXPECT_FALSE(to_json(table, blind, "the command")["holds"].get<bool>());
  options.faults = {"sink_ingored"};
  EXPECT_THROW(run_fault_table(blind, options), InputError);
}

TEST(FaultTable, WantsTheScopeThatWasPlanted) {
  const Gate gate = default_gate();
  const FaultCase f = prepare_fault_case(
      generate_case(parse_problem("b1 hq4 hkv2 sq80 sk80 d64 bf16 causal seed=31"), "test"), 1, 0);
  const Outputs outputs = plant_in_group(find_fault("sink_ignored"), f.healthy, 1).run(f.c, {}).outputs;
  std::vector<TensorMetrics> metrics;
  for (const TensorName name : kTensorNames) metrics.push_back(measure(f.c, f.truth, name, outputs[name]));
  const PlantedScope scope = planted_scope(f, gate, outputs, metrics, false);
  const std::vector<Finding> findings = explain(f.c, f.truth, gate, outputs, metrics, false).findings;
  ASSERT_EQ(findings.size(), 1U);
  EXPECT_TRUE(is_scope_right(scope, findings));
  const auto changed = [&](auto change) {
    std::vector<Finding> other = findings;
    change(other[0]);
    return is_scope_right(scope, other);
  };
  EXPECT_FALSE(changed([](Finding& one) { one.heads = {2}; }));
  EXPECT_FALSE(changed([](Finding& one) { one.heads = {1, 2, 3}; }));
  EXPECT_FALSE(changed([](Finding& one) { one.all_heads = true; }));
  EXPECT_FALSE(changed([](Finding& one) { one.tensors.pop_back(); }));
  EXPECT_FALSE(changed([](Finding& one) { one.first_row = 0, one.end_row = 1; }));
}

// One head's small numbers beside a loud one's.
TEST(PeerCriteria, LookAtWholeTensors) {
  const Case c = generate_case(parse_problem("b1 hq2 hkv2 sq16 sk16 d64 bf16 causal seed=32"), "test");
  Truth truth = compute_truth(c);
  const Tensor right = Tensor::rounded(DType::kBf16, c.q.shape(), truth.value.out);
  const auto failed = [&](const Tensor& got, const Tensor& eager = {}) {
    return judge_by_peers(c, truth, TensorName::kOut, got, eager);
  };
  const PeerVerdicts none = failed(right, right);
  EXPECT_FALSE(none.flash_attention || none.allclose || none.assert_close || none.cosine);

  Tensor off = right;
  off.set(5, right.at(5) * 1.05 + 0.05);
  const PeerVerdicts one = failed(off, right);
  EXPECT_TRUE(one.flash_attention && one.allclose && one.assert_close);
  EXPECT_FALSE(one.cosine);
  EXPECT_FALSE(failed(off).flash_attention);  // no baseline, no criterion
  Tensor baseline = right;
  baseline.set(9, right.at(9) + 0.2);
  EXPECT_FALSE(failed(off, baseline).flash_attention);

  Tensor negated = right, nothing = right;
  for (std::int64_t i = 0; i < right.size(); ++i) negated.set(i, -right.at(i)), nothing.set(i, 0);
  EXPECT_TRUE(failed(negated, baseline).cosine);
  EXPECT_TRUE(failed(nothing, baseline).cosine);
  off.set(5, NAN);
  const PeerVerdicts nan = failed(off, baseline);
  EXPECT_TRUE(nan.flash_attention && nan.allclose && nan.assert_close && nan.cosine);
  EXPECT_TRUE(failed({}, right).flash_attention && failed({}).cosine);
}

TEST(FaultExpectation, WithholdsACauseWithItsFamily) {
  EXPECT_EQ(expectation_of("dq_scaled").cause, kUnknownCause);
  EXPECT_EQ(expectation_of("dq_head_lost").cause, "head_zeroed");
  EXPECT_EQ(expectation_of("scale_missing").family,
            (std::vector<std::string>{"scale_missing", "scale_wrong"}));
  EXPECT_EQ(expectation_of("gqa_mean").family, std::vector<std::string>{"gqa_mean"});
}

}  // namespace
}  // namespace sinkscope
