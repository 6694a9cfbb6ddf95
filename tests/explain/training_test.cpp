// SPDX-License-Identifier: Apache-2.0
// What a path's errors mean for training: predicted gains are the measured ones, shares sum to the whole and are on the
// right cause and head, and the words follow from them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "fmt/format.h"
#include "gtest/gtest.h"

#include "src/capture/capture.hpp"
#include "src/compare/compare.hpp"
#include "src/explain/explain.hpp"
#include "src/paths/table.hpp"

namespace sinkscope {
namespace {

constexpr std::array kCaptures = {"calm_layer0", "calm_layer1", "loud_layer6", "loud_layer7"};

Explanation explained(const Case& c, const std::string& path) {
  CompareOptions options;
  options.paths = {path};
  options.repeat = 1;
  options.explain = true;
  return compare_case(c, read_gate("reports/gates/default.toml"), options).paths.at(0).explanation;
}

Explanation explained(const std::string& capture, const std::string& path) {
  Problem problem;
  problem.capture = "datasets/captures/" + capture + ".safetensors";
  return explained(load_capture(problem), path);
}

Explanation planted(const std::string& line, const std::string& faults) {
  return explained(generate_case(parse_problem(line), "test"), "fault:" + faults + ":sink_kernel");
}

double share_of(const Training& training, const std::string& cause) {
  for (const CauseShare& of : training.causes) {
    if (of.cause == cause) return of.share;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

[[maybe_unused]] double share_of_head(const Training& training, std::int64_t head) {
  for (const HeadShare& of : training.shares) {
    if (!of.of_keys && of.head == head) return of.share;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

void expect_whole(const Training& training, const std::string& what) {
  ASSERT_TRUE(training.changed) << what << ": " << training.sentence;
  double causes = 0, heads = 0;
  for (const CauseShare& of : training.causes) causes += of.share;
  for (const HeadShare& of : training.shares) heads += of.share;
  EXPECT_NEAR(causes, 1, 1e-9) << what;
  EXPECT_NEAR(heads, 1, 1e-9) << what;
}

bool says(const Training& training, const std::string& words) {
  return training.sentence.find(words) != std::string::npos;
}

TEST(Training, PredictsTheGainsOfAPathWithoutSinks) {
  for (const char* capture : kCaptures) {
    const Training training = explained(capture, "recorded.flash_attention_2").training;
    expect_whole(training, capture);
    EXPECT_NEAR(share_of(training, "sink_ignored"), 1, 0.01) << capture;
    ASSERT_EQ(training.heads.size(), 8U + 8 + 2 + 2) << capture << ": out, dq, dk and dv";
    for (const HeadGradient& g : training.heads) {
      const double limit = g.tensor == TensorName::kDq ? 3e-3 : 1e-3;
      printf("%s %s %ld %.3e\n", capture, std::string(text(g.tensor)).c_str(), (long)g.head, g.gain / g.predicted_gain - 1);
      EXPECT_NEAR(g.gain / g.predicted_gain, 1, limit) << capture << " " << text(g.tensor) << " " << g.head;
    }
    EXPECT_FALSE(training.sinks_train) << capture;
    EXPECT_TRUE(says(training, "the sinks get no gradient")) << training.sentence;
    EXPECT_NE(training.recommendation.find("flash_attention_2_sink or eager"), std::string::npos);
  }
}

// datasets/captures/README.md has the gain of head 6.
TEST(Training, HasThePublishedGain) {
  const Training training = explained("calm_layer1", "recorded.flash_attention_2").training;
  EXPECT_EQ(training.heads.at(6).tensor, TensorName::kOut);
  EXPECT_NEAR(training.heads.at(6).gain, 3.48, 0.005);
  EXPECT_NEAR(training.heads.at(6).predicted_gain, 3.48, 0.005);
}

constexpr const char* kLine = "b1 hq8 hkv2 sq150 sk150 d64 bf16 causal w48 seed=3";

TEST(Training, PutsTheChangeOnTheCause) {
  for (const char* fault : {"sink_ignored", "scale_wrong", "dlse_dropped", "gqa_not_summed"}) {
    const Training training = planted(kLine, fault).training;
    expect_whole(training, fault);
    EXPECT_NEAR(share_of(training, fault), 1, 0.02) << fault;
    for (const HeadGradient& g : training.heads)
      EXPECT_NEAR(g.gain, g.predicted_gain, 0.02) << fault << " " << text(g.tensor) << " " << g.head;
  }
  const Training shorter = planted(kLine, "gqa_not_summed").training;
  EXPECT_LT(shorter.layer.change(), 0);
  EXPECT_TRUE(says(shorter, "smaller than that of exact attention")) << shorter.sentence;
  EXPECT_TRUE(says(shorter, "of the loss")) << shorter.sentence;
  const Training longer = planted(kLine, "sink_ignored").training;
  EXPECT_TRUE(says(longer, "times that of exact attention, and the excess")) << longer.sentence;
  EXPECT_FALSE(longer.sinks_train);
}

// Of two mistakes each has what it changes: alone, and on top of the other, in the mean where they are found together.
TEST(Training, SharesTheChangeBetweenTwoCauses) {
  const auto norm2 = [](const std::string& fault) { return planted(kLine, fault).training.layer.got; };
  const double none = planted(kLine, "sink_ignored").training.layer.ref;
  for (const auto& [first, second] :
       {std::pair{"sink_ignored", "window_plus_one"}, std::pair{"scale_wrong", "window_minus_one"}, std::pair{"window_plus_one","dlse_dropped"}}) {
    const Training training = planted(kLine, fmt::format("{}:fault:{}", first, second)).training;
    expect_whole(training, first);
    const double a = norm2(first), b = norm2(second), both = training.layer.got;
    const double part = (a - none + both - b) / 2;
    printf("%s %s: %s seq %.4f shap %.4f got %.4f\n", first, second, training.sentence.c_str(), (a-none)/(both-none), part / (both - none), share_of(training, first));
    EXPECT_NEAR(share_of(training, first), part / (both - none), 0.02) << first << " " << second;
  }
}

}  // namespace
}  // namespace sinkscope
