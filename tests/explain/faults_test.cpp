// SPDX-License-Identifier: Apache-2.0
// Scopes, two mistakes at once, what an input cannot show. That every fault is named is tests/calibrate/'s.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "gtest/gtest.h"

#include "src/compare/compare.hpp"
#include "src/explain/cause.hpp"
#include "src/explain/explain.hpp"
#include "src/paths/table.hpp"

namespace sinkscope {
namespace {

Case generated(const std::string& line) {
  return generate_case(parse_problem(line), "test");
}

PathResult explained(const Case& c, const std::string& path) {
  CompareOptions options;
  options.paths = {path};
  options.repeat = 1;
  options.explain = true;
  return compare_case(c, read_gate("reports/gates/default.toml"), options).paths.at(0);
}

bool names(const Finding& finding, const std::string& cause) {
  return finding.cause == cause ||
         std::find(finding.equivalent.begin(), finding.equivalent.end(), cause) != finding.equivalent.end();
}

std::string text_of(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& f : findings) {
    text += fmt::format("{} [{}] {}; share {:.3g}, z {:.3g}\n", f.cause, fmt::join(f.equivalent, " "),
                        scope_text(f), f.share, f.residual_z);
  }
  return text;
}

// One head of four has the mistake in out, dq, and its part of dk and dv.
TEST(Explain, SaysWhichHeadsAreConcerned) {
  Case c = generated("b1 hq4 hkv2 sq150 sk150 d64 bf16 causal seed=8");
  const PathRun right = find_path("sink_kernel", c).run(c, {});
  Case changed = c;
  changed.sinks.set(2, -1e30);
  const PathRun wrong = find_path("sink_kernel", changed).run(changed, {});
  Outputs mixed = right.outputs;
  for (const TensorName name : kTensorNames) mixed[name] = wrong.outputs[name];
  c.recorded["one"] = mixed;
  const std::vector<Finding> findings = explained(c, "recorded.one").explanation.findings;
  ASSERT_EQ(findings.size(), 1U) << text_of(findings);
  EXPECT_EQ(findings[0].cause, "sink_ignored");
  EXPECT_EQ(findings[0].heads, std::vector<std::int64_t>{2}) << text_of(findings);
  EXPECT_FALSE(findings[0].all_heads);
  EXPECT_EQ(findings[0].tensors.size(), kTensorNames.size()) << text_of(findings);
}

// Rows of the last tile ignore the sink, in the forward alone.
TEST(Explain, SaysWhichRowsAndTensorsAreConcerned) {
  Case c = generated("b1 hq2 hkv2 sq150 sk150 d64 bf16 causal seed=9");
  Outputs outputs = find_path("sink_kernel", c).run(c, {}).outputs;
  Case sinkless = c;
  sinkless.sinks = {};
  const Outputs wrong = find_path("sink_kernel", sinkless).run(sinkless, {}).outputs;
  constexpr std::int64_t kFirst = 128;
  for (std::int64_t i = 0; i < outputs.out.size(); ++i) {
    if (i / 64 % 150 >= kFirst) outputs.out.set(i, wrong.out.at(i));
  }
  c.recorded["tile"] = outputs;
  const std::vector<Finding> findings = explained(c, "recorded.tile").explanation.findings;
  ASSERT_EQ(findings.size(), 1U) << text_of(findings);
  EXPECT_EQ(findings[0].cause, "sink_ignored");
  EXPECT_EQ(findings[0].tensors, std::vector<TensorName>{TensorName::kOut});
  EXPECT_EQ(findings[0].first_row, kFirst) << text_of(findings);
  EXPECT_EQ(findings[0].end_row, 150);
}

// Rollouts of one prompt may be the same: what they share is no buffer used twice.
TEST(Explain, BatchEntriesThatAreAlikeHoldTheSame) {
  Case c = generated("b2 hq2 hkv1 sq40 sk40 d64 bf16 causal seed=11");
  for (Tensor* t : {&c.q, &c.k, &c.v, &c.dout})
    std::memcpy(t->data() + t->bytes() / 2, t->data(), t->bytes() / 2);
  Outputs rough = find_path("sink_kernel", c).run(c, {}).outputs;
  const std::int64_t of_entry = rough.lse.size() / 2;
  for (std::int64_t i = 0; i < rough.lse.size(); ++i)
    rough.lse.set(i, rough.lse.at(i) + 1e-3 * static_cast<double>(i % of_entry % 7));
  c.recorded["rough"] = rough;
  const std::vector<Finding> findings = explained(c, "recorded.rough").explanation.findings;
  for (const Finding& finding : findings) EXPECT_FALSE(names(finding, "stale")) << text_of(findings);
}

TEST(Explain, FindsTwoMistakesAtOnce) {
  const Case c = generated("b1 hq4 hkv2 sq150 sk150 d64 bf16 causal w48 seed=10");
  for (const auto& [first, second] :
       {std::pair{"window_plus_one", "dlse_dropped"}, std::pair{"sink_ignored", "window_ignored"},
        std::pair{"sink_twice", "gqa_mean"}}) {
    const std::vector<Finding> findings =
        explained(c, fmt::format("fault:{}:fault:{}:sink_kernel", second, first)).explanation.findings;
    ASSERT_EQ(findings.size(), 2U) << first << " " << second << "\n" << text_of(findings);
    for (const char* wanted : {first, second}) {
      EXPECT_TRUE(names(findings[0], wanted) || names(findings[1], wanted)) << wanted << "\n"
                                                                            << text_of(findings);
    }
  }
}

// dk, dv and dsinks of a path that knows of no padding; and what padding itself holds is nobody's mistake.
TEST(Explain, NamesPaddingThatIsCountedInEveryGradient) {
  Case c = generated("b2 hq4 hkv2 sq90 sk90 d64 bf16 causal seqlens=60,81 seed=13");
  Case whole = c;
  whole.dout = c.padded_dout;
  c.recorded["unaware"] = find_path("sink_kernel", c).run(whole, {}).outputs;
  const std::vector<Finding> findings = explained(c, "recorded.unaware").explanation.findings;
  ASSERT_EQ(findings.size(), 1U) << text_of(findings);
  EXPECT_EQ(findings[0].cause, "dsink_padding");
  EXPECT_TRUE(findings[0].all_heads);
  EXPECT_EQ(findings[0].tensors,
            (std::vector<TensorName>{TensorName::kDk, TensorName::kDv, TensorName::kDsinks}));

  Outputs garbage = find_path("sink_kernel", c).run(c, {}).outputs;
  for (const TensorName name :
       {TensorName::kOut, TensorName::kLse, TensorName::kDq, TensorName::kDk, TensorName::kDv}) {
    const std::int64_t columns = name == TensorName::kLse ? 1 : 64;
    for (std::int64_t i = 0; i < garbage[name].size(); ++i) {
      const std::int64_t head = i / columns / 90, heads = is_of_keys(name) ? 2 : 4;
      if (i / columns % 90 >= (head / heads == 0 ? 60 : 81)) garbage[name].set(i, NAN);
    }
  }
  c.recorded["garbage"] = garbage;
  EXPECT_EQ(explained(c, "recorded.garbage").explanation.findings.at(0).cause, kNoCause);
}

TEST(Explain, ListsWhatAnInputCannotShow) {
  const Gate gate = read_gate("reports/gates/default.toml");
  std::map<std::string, std::string> blind;
  for (const BlindSpot& spot : blind_spots(generated("b1 hq4 hkv4 sq96 sk96 d64 bf16 causal seed=11"), gate))
    blind[spot.cause] = spot.reason;
  for (const char* cause : {"window_plus_one", "window_ignored", "causal_top_left", "documents_leak",
                            "gqa_interleaved", "gqa_mean", "dsink_batch"}) {
    EXPECT_TRUE(blind.contains(cause)) << cause;
  }
  for (const char* cause :
       {"sink_ignored", "causal_missing", "scale_missing", "dlse_dropped", "dsink_missing"})
    EXPECT_FALSE(blind.contains(cause)) << cause << ": " << blind[cause];
}

TEST(Explain, KnowsItsCausesByName) {
  std::set<std::string_view> ids;
  for (const Cause& cause : all_causes()) {
    EXPECT_TRUE(ids.insert(cause.id).second) << cause.id;
    EXPECT_EQ(&find_cause(cause.id), &cause);
    EXPECT_FALSE(cause.sentence.empty() || cause.fix.empty() || cause.evidence.empty()) << cause.id;
  }
  EXPECT_EQ(find_cause("head_zeroed").id, "head_zeroed");
  EXPECT_THROW(find_cause("sink_ingored"), InputError);
}

}  // namespace
}  // namespace sinkscope
