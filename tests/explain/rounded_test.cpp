// SPDX-License-Identifier: Apache-2.0
// Mistakes of paths that round their scores too: both are named, and a healthy one has no mistake.
#include <algorithm>
#include <string>

#include "fmt/format.h"
#include "gtest/gtest.h"

#include "src/compare/compare.hpp"
#include "src/explain/cause.hpp"
#include "src/explain/rounding.hpp"
#include "src/paths/table.hpp"

namespace sinkscope {
namespace {

std::vector<PathResult> explained(const std::string& line, const std::vector<std::string>& paths) {
  CompareOptions options;
  options.paths = paths;
  options.repeat = 1;
  options.explain = true;
  return compare_case(generate_case(parse_problem(line), "test"), read_gate("reports/gates/default.toml"),
                      options)
      .paths;
}

std::string text_of(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& f : findings)
    text += fmt::format("{} {}; share {:.3g}, z {:.3g}\n", f.cause, scope_text(f), f.share, f.residual_z);
  return text;
}

// The mistake in all heads, then the rounding that the path is known to have, and nothing else.
void expect_both(const PathResult& path, const std::string& mistake, const std::string& rounding) {
  const std::vector<Finding>& findings = path.explanation.findings;
  ASSERT_EQ(findings.size(), 2U) << path.path << "\n" << text_of(findings);
  EXPECT_EQ(findings[0].cause, mistake) << path.path << "\n" << text_of(findings);
  EXPECT_TRUE(findings[0].all_heads) << path.path << "\n" << text_of(findings);
  EXPECT_EQ(findings[1].cause, rounding) << path.path << "\n" << text_of(findings);
  EXPECT_LT(findings[1].residual_z, 0.6) << path.path << "\n" << text_of(findings);
}

void expect_all(const std::string& line, const std::vector<const char*>& mistakes, const std::string& dtype) {
  for (const auto& [path, model] : {std::pair{"eager", "softmax"}, std::pair{"eager_fp32", "logits"}}) {
    const std::string rounding = fmt::format("rounding:{}_{}", model, dtype);
    std::vector<std::string> paths = {path};
    for (const char* mistake : mistakes) paths.push_back(fmt::format("fault:{}:{}", mistake, path));
    const std::vector<PathResult> results = explained(line, paths);
    if (results[0].verdicts.at(0).verdict == Verdict::kSkipped)
      GTEST_SKIP() << results[0].verdicts.at(0).reason;
    ASSERT_EQ(results[0].explanation.findings.size(), 1U) << text_of(results[0].explanation.findings);
    EXPECT_EQ(results[0].explanation.findings[0].cause, rounding);
    for (std::size_t i = 0; i < mistakes.size(); ++i) expect_both(results[i + 1], mistakes[i], rounding);
  }
}

TEST(RoundedMistakes, AreNamedBesideTheRounding) {
  expect_all("b1 hq8 hkv2 sq300 sk300 d64 bf16 causal w128 seed=7",
             {"window_plus_one", "window_minus_one", "window_ignored", "sink_ignored", "sink_twice",
              "causal_missing", "scale_missing", "scale_squared", "gqa_interleaved"},
             "bf16");
}

// Mistakes of dk, dv and dsinks alone, on top of a forward that is right but for its roundings.
TEST(RoundedMistakes, OfTheBackwardToo) {
  expect_all("b2 hq4 hkv2 sq100 sk100 d64 fp16 causal seed=3",
             {"gqa_mean", "gqa_not_summed", "dsink_missing", "dsink_sign", "sink_twice"}, "fp16");
}

TEST(RoundedMistakes, OfPackedRows) {
  expect_all("b1 hq4 hkv2 sq160 sk160 d64 bf16 causal docs=60,100 w30 seed=5",
             {"documents_leak", "window_ignored", "causal_missing", "sink_twice", "gqa_mean"}, "bf16");
}

// Whatever the masks, a model of few roundings is near the function itself, and one row alone is the same row.
TEST(RoundedMistakes, ModelsFollowTheFunction) {
  const Case c =
      generate_case(parse_problem("b1 hq2 hkv1 sq40 sk46 d16 fp16 causal w9 sink=0.5 seed=1"), "test");
  const RoundingModel model = rounding_models(c).at(1);
  for (const char* id : {"window_symmetric", "causal_missing", "causal_top_left", "sink_ignored",
                         "sink_twice", "scale_missing", "gqa_mean", "dsink_sign"}) {
    HeadFunction f = right_function(c, 1);
    const Cause& cause = find_cause(id);
    ASSERT_TRUE(cause.hypotheses(cause, {c, 0, 1, f, nullptr}).at(0).apply(f, 0, 1)) << id;
    ASSERT_TRUE(can_emulate(f)) << id;
    const HeadResult exact = evaluate(c, 0, 1, f, true), rounded = emulate(c, 0, 1, f, model, {0, 40}, true);
    const HeadResult some = emulate(c, 0, 1, f, model, {17, 19}, true);
    const auto expect_near = [&](const std::vector<double>& a, const std::vector<double>& b,
                                 const char* what) {
      double size = 0, worst = 0;
      for (std::size_t i = 0; i < a.size(); ++i) {
        size = std::max(size, std::abs(b[i]));
        worst = std::max(worst, std::abs(a[i] - b[i]));
      }
      EXPECT_LE(worst, 0.01 * size) << id << " " << what;
    };
    expect_near(rounded.out, exact.out, "out");
    expect_near(rounded.dq, exact.dq, "dq");
    expect_near(rounded.dk, exact.dk, "dk");
    expect_near(rounded.dv, exact.dv, "dv");
    expect_near(rounded.dsink, exact.dsink, "dsink");
    for (std::size_t i = std::size_t{17} * 16; i < std::size_t{19} * 16; ++i) {
      EXPECT_EQ(some.out[i], rounded.out[i]) << id;
      EXPECT_EQ(some.dq[i], rounded.dq[i]) << id;
    }
  }
  HeadFunction f = right_function(c, 1);
  f.softcap = 2;
  EXPECT_FALSE(can_emulate(f));
}

}  // namespace
}  // namespace sinkscope
