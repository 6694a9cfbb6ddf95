// SPDX-License-Identifier: Apache-2.0
// What stands between a stopwatch and a published figure: work, spread, the check of what was timed, the table.
#include "src/bench/bench.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"

#include "src/bench/check.hpp"
#include "src/bench/work.hpp"
#include "src/faults/fault.hpp"
#include "src/paths/table.hpp"

namespace sinkscope {
namespace {

// The design's visibility, pair by pair.
double counted_pairs(const AttentionShape& s) {
  const std::vector<std::int64_t> q = s.docs.empty() ? std::vector{s.sq} : s.docs;
  const std::vector<std::int64_t> k = s.docs.empty()     ? std::vector{s.sk}
                                      : s.docs_k.empty() ? s.docs
                                                         : s.docs_k;
  double pairs = 0;
  for (std::size_t doc = 0; doc < q.size(); ++doc) {
    for (std::int64_t i = 0; i < q[doc]; ++i) {
      for (std::int64_t j = 0; j < k[doc]; ++j) {
        const std::int64_t distance = i + k[doc] - q[doc] - j;
        const bool seen = !s.causal || (distance >= 0 && (s.window == 0 || distance < s.window));
        pairs += seen ? 1 : 0;
      }
    }
  }
  return pairs * static_cast<double>(s.b * s.hq);
}

TEST(Work, CountsThePairsThatAreVisible) {
  for (const char* line :
       {"b2 hq4 hkv2 sq37 sk37 d64 bf16 causal", "b1 hq2 hkv1 sq33 sk80 d64 bf16 full",
        "b1 hq2 hkv1 sq80 sk33 d64 bf16 causal", "b1 hq2 hkv1 sq33 sk80 d64 bf16 causal w7",
        "b1 hq3 hkv3 sq50 sk50 d128 bf16 causal w200", "b1 hq2 hkv2 docs=10,0,37 d64 bf16 causal w5",
        "b1 hq2 hkv2 docs=10,4,37 docs_k=3,9,50 d64 bf16 causal", "b1 hq2 hkv2 docs=10,0,37 d64 bf16 full"}) {
    const AttentionShape shape = parse_problem(line).shape;
    EXPECT_EQ(visible_pairs(shape), counted_pairs(shape)) << line;
  }
}

TEST(Work, IsThatOfTheTensorsAndProducts) {
  const Problem problem = parse_problem("b1 hq2 hkv1 sq3 sk5 d64 bf16 full");
  EXPECT_EQ(forward_work(problem).flops, 4 * 64 * 2 * 15);
  EXPECT_EQ(backward_work(problem).flops, 10 * 64 * 2 * 15);
  const double q = 2 * 3 * 64 * 2, k = 5 * 64 * 2, lse = 2 * 3 * 4;
  EXPECT_EQ(forward_work(problem).bytes, 2 * q + 2 * k + lse);
  EXPECT_EQ(backward_work(problem).bytes, 4 * q + 4 * k + lse);
  const Problem residual = parse_problem("b1 hq2 hkv1 sq3 sk5 d64 bf16 full residual");
  EXPECT_EQ(forward_work(residual).bytes, 2 * q + 2 * k + lse + q / 2);
}

TEST(Spread, HasMedianAndQuartilesOfAnyOrder) {
  const nlohmann::json spread = spread_of({5, 1, 4, 2, 3});
  EXPECT_EQ(spread["median"], 3.0);
  EXPECT_EQ(spread["q1"], 2.0);
  EXPECT_EQ(spread["q3"], 4.0);
  EXPECT_EQ(spread["min"], 1.0);
  EXPECT_EQ(spread["max"], 5.0);
  EXPECT_EQ(spread["rounds"], 5);
  EXPECT_EQ(spread_of({4, 1})["median"], 2.5);
  EXPECT_THROW(spread_of({}), std::invalid_argument);
}

Gate strict_gate() {
  Gate gate;
  gate.name = "strict";
  const Limits limits = {1.05, 3.3, 4.1};
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32})
    gate.formats[dtype] = {limits, {2, std::numeric_limits<double>::infinity(), 5}, 2.2};
  gate.judged = {"sink_kernel"};
  return gate;
}

// A case of two key/value heads, what the CPU kernel makes of it, and the truth of the second head.
struct Checked {
  Case c = generate_case(parse_problem("b2 hq4 hkv2 sq96 sk96 d64 bf16 causal w40 dlse seed=3"), "bench");
  Outputs outputs = find_path("sink_kernel", c).run(c, {1, true}).outputs;
  Truth truth = compute_truth(part_of(c, {1, 1}), 1);

  OutputCheck check(bool judged) const {
    return check_outputs(outputs, c, {1, 1}, truth, strict_gate(), judged, 1);
  }
};

TEST(Check, TheProblemOfOneKvHeadHasThatHeadsTruth) {
  const Checked checked;
  const Truth all = compute_truth(checked.c, 1);
  const auto count = static_cast<std::ptrdiff_t>(checked.truth.value.dk.size() / 2);  // of a batch entry
  for (std::ptrdiff_t batch = 0; batch < 2; ++batch) {
    EXPECT_TRUE(std::equal(checked.truth.value.dk.begin() + batch * count,
                           checked.truth.value.dk.begin() + (batch + 1) * count,
                           all.value.dk.begin() + (2 * batch + 1) * count));
  }
  EXPECT_EQ(checked.truth.value.dsinks[1], all.value.dsinks[3]);
}

TEST(Check, RightOutputsPass) {
  const Checked checked;
  for (const bool judged : {true, false}) {
    const OutputCheck check = checked.check(judged);
    EXPECT_EQ(check.wrong, "");
    EXPECT_EQ(check.rel_l2.size(), 6U);
    EXPECT_LT(check.rel_l2.at("dq"), 0.02);
  }
}

TEST(Check, AWrongOutputIsNamed) {
  for (const bool judged : {true, false}) {
    Checked checked;
    const std::int64_t first_of_head_1 = checked.outputs.dk.size() / 4;
    for (std::int64_t i = first_of_head_1; i < 2 * first_of_head_1; ++i)
      checked.outputs.dk.set(i, 1.2 * checked.outputs.dk.at(i));
    EXPECT_EQ(checked.check(judged).wrong.substr(0, 4), "dk: ");
  }
}

TEST(Check, AnElementNeverWrittenIsSeenInAnyHead) {
  Checked checked;
  checked.outputs.dv.set(0, std::numeric_limits<double>::quiet_NaN());  // of head 0, which has no truth here
  EXPECT_EQ(checked.check(true).wrong, "dv: 1 elements are not finite");
}

TEST(Check, EveryVisibleFaultOfTheKernelIsSeenWhereEveryHeadIsChecked) {
  const Checked checked;
  const Truth truth = compute_truth(checked.c, 1);
  int seen = 0;
  for (const Fault& fault : all_faults()) {
    const Path path = fault.plant(find_path("sink_kernel", checked.c));
    if (path.unsupported(checked.c)) continue;
    const Outputs outputs = path.run(checked.c, {1, true}).outputs;
    EXPECT_NE(check_outputs(outputs, checked.c, {0, 2}, truth, strict_gate(), true, 1).wrong, "")
        << fault.name;
    ++seen;
  }
  EXPECT_GT(seen, 5);
}

TEST(Table, AWrongContestantHasNoTime) {
  nlohmann::json pass = {{"ms", spread_of({0.5})},
                         {"tflops", 321.0},
                         {"gemm_share", 0.4},
                         {"copy_share", 0.1},
                         {"speedup_over_flash_attention_2", nullptr}};
  nlohmann::json right = {{"name", "sink_kernel"},       {"unavailable", ""}, {"wrong", ""},
                          {"rel_l2", {{"out", 0.0016}}}, {"forward", pass},   {"backward", nullptr}};
  nlohmann::json wrong = right;
  wrong["name"] = "eager";
  wrong["wrong"] = "dq: relative L2 of 0.3, wanted 0.05 at most";
  wrong["forward"] = nullptr;
  const std::string table = gpu_problem_table({{"problem", "b1"},
                                               {"gemm_tflops", 790.0},
                                               {"copy_tbytes", 4.2},
                                               {"checked", "kv head 0 of 1"},
                                               {"contestants", {right, wrong}},
                                               {"price_of_sink", nullptr},
                                               {"price_of_residual", nullptr}});
  EXPECT_NE(table.find("| sink_kernel | forward | 0.5 (0.5 to 0.5) | 321 | 40 % | 10 % | - |"),
            std::string::npos)
      << table;
  EXPECT_EQ(table.find("| eager |"), std::string::npos) << table;
  EXPECT_NE(table.find("eager: **wrong**, so it has no time: dq"), std::string::npos) << table;
}

TEST(GpuBench, ItsDefaultProblemsParse) {
  for (const std::string& line : default_gpu_problems()) EXPECT_EQ(to_string(parse_problem(line)), line);
}

}  // namespace
}  // namespace sinkscope
