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

double share_of_head(const Training& training, std::int64_t head) {
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
    // The rest is rounding: small changes of a norm (0.6 % in loud_layer7) are rounding to a part.
    EXPECT_NEAR(share_of(training, "sink_ignored"), 1, 0.06) << capture;
    ASSERT_EQ(training.heads.size(), 8U + 8 + 2 + 2) << capture << ": out, dq, dk and dv";
    for (const HeadGradient& g : training.heads) {
      const double limit = g.tensor == TensorName::kDq ? 2e-3 : 1e-3;  // at most 1.6e-3 and 4.8e-4
      EXPECT_NEAR(g.gain / g.predicted_gain, 1, limit) << capture << " " << text(g.tensor) << " " << g.head;
    }
    EXPECT_FALSE(training.sinks_train) << capture;
    EXPECT_TRUE(says(training, "the sinks do not train")) << training.sentence;
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

// The gate sees this one in dsinks, in some LSEs and in one head of out; everything else follows from the same mistake.
TEST(Training, FollowsAMistakeIntoWhatPasses) {
  const std::string line = "b1 hq8 hkv1 sq70 sk110 d64 bf16 causal sink=-3 seed=6";
  const Explanation explanation = planted(line, "sink_scaled");
  ASSERT_EQ(explanation.findings.at(0).cause, "sink_scaled");
  for (const TensorName tensor : explanation.findings[0].tensors) EXPECT_FALSE(is_of_keys(tensor));
  expect_whole(explanation.training, line);
  EXPECT_NEAR(share_of(explanation.training, "sink_scaled"), 1, 0.01);
  for (const HeadGradient& g : explanation.training.heads) {
    if (g.tensor == TensorName::kDsinks) continue;
    EXPECT_LT(g.gain, 0.996) << text(g.tensor) << " " << g.head;
    EXPECT_NEAR(g.gain, g.predicted_gain, 5e-4) << text(g.tensor) << " " << g.head;
  }
}

// Of two mistakes that are found together each has the mean of what it changes alone and on top of the other; of one on
// top of another in the forward that one comes first.
TEST(Training, SharesTheChangeBetweenTwoCauses) {
  const auto norm2 = [](const std::string& fault) { return planted(kLine, fault).training.layer; };
  for (const auto& [first, second, together] :
       {std::tuple{"sink_ignored", "scale_wrong", true}, std::tuple{"sink_twice", "window_minus_one", true},
        std::tuple{"window_plus_one", "dlse_dropped", false},
        std::tuple{"sink_ignored", "gqa_mean", false}}) {
    const Training training = planted(kLine, fmt::format("{}:fault:{}", first, second)).training;
    expect_whole(training, first);
    const double a = norm2(first).change(), b = norm2(second).change(), both = training.layer.change();
    const double part = together ? (a + both - b) / 2 : a;
    EXPECT_NEAR(share_of(training, first), part / both, 4e-3) << first << " " << second;
    EXPECT_NEAR(share_of(training, second), 1 - part / both, 4e-3) << first << " " << second;
    EXPECT_TRUE(says(training, " and ")) << training.sentence;
  }
}

// Head 5 of 16 has no sink; heads 4, 6 and 7 share their keys with it and are right.
TEST(Training, PutsTheChangeOnTheHead) {
  Case c = generate_case(parse_problem("b2 hq16 hkv4 sq100 sk100 d64 bf16 causal sink=3 seed=8"), "test");
  Case changed = c;
  changed.sinks.set(5, -1e30);
  c.recorded["one"] = find_path("sink_kernel", changed).run(changed, {}).outputs;
  const Training training = explained(c, "recorded.one").training;
  expect_whole(training, "head 5");
  ASSERT_EQ(training.shares.size(), 16U + 4);
  EXPECT_NEAR(share_of_head(training, 5), 1, 1e-2) << training.sentence;
  EXPECT_LT(std::fabs(share_of_head(training, 6)), 1e-3);
  EXPECT_TRUE(says(training, "of the excess comes from head 5")) << training.sentence;
  EXPECT_TRUE(training.sinks_train);
  for (const HeadGradient& g : training.heads) {
    if (g.tensor != TensorName::kOut) continue;
    const double least = g.head == 5 ? 1.1 : 1, most = g.head == 5 ? 10 : 1;
    EXPECT_TRUE(least <= g.predicted_gain && g.predicted_gain <= most) << g.head << " " << g.predicted_gain;
  }
}

TEST(Training, SaysThatAHealthyPathChangesNothing) {
  const Training training = planted(kLine, "dsink_missing").training;
  EXPECT_FALSE(training.changed);
  EXPECT_FALSE(training.sinks_train);
  EXPECT_TRUE(says(training, "the gradients of q, k and v are right; the sinks do not train"))
      << training.sentence;
  const Case c = generate_case(parse_problem(kLine), "test");
  const Training healthy = explained(c, "sink_kernel").training;
  EXPECT_TRUE(healthy.given);
  EXPECT_FALSE(healthy.changed);
  EXPECT_TRUE(healthy.causes.empty() && healthy.shares.empty());
  EXPECT_TRUE(says(healthy, "gradients are those of exact attention to within rounding")) << healthy.sentence;
  EXPECT_LT(healthy.layer.error, 1e-3 * healthy.layer.ref);
  const Training eager = explained("calm_layer1", "recorded.eager").training;
  EXPECT_FALSE(eager.changed) << eager.sentence;
  EXPECT_TRUE(says(eager, "to within rounding")) << eager.sentence;
}

TEST(Training, SeesAWrongDirectionOfTheRightLength) {
  Case c = generate_case(parse_problem(kLine), "test");
  Outputs outputs = find_path("sink_kernel", c).run(c, {}).outputs;
  for (std::int64_t i = 0; i < outputs.dq.size(); ++i) outputs.dq.set(i, -outputs.dq.at(i));
  c.recorded["turned"] = outputs;
  const Explanation turned = explained(c, "recorded.turned");
  EXPECT_EQ(turned.findings.at(0).cause, kUnknownCause);
  EXPECT_FALSE(turned.training.changed);
  EXPECT_TRUE(says(turned.training, "the gradients themselves are not")) << turned.training.sentence;
  double dq = 0;
  for (const HeadGradient& g : turned.training.heads) dq += g.tensor == TensorName::kDq ? g.norm2.ref : 0;
  EXPECT_NEAR(turned.training.layer.error, 4 * dq, 0.01 * dq);
}

TEST(Training, TakesNoShareOfWhatIsNotFinite) {
  Case c = generate_case(parse_problem(kLine), "test");
  Outputs outputs = find_path("sink_kernel", c).run(c, {}).outputs;
  outputs.dk.set(7, std::numeric_limits<double>::quiet_NaN());
  c.recorded["broken"] = outputs;
  const Training training = explained(c, "recorded.broken").training;
  EXPECT_FALSE(training.changed);
  EXPECT_TRUE(std::isnan(training.layer.got));
  EXPECT_TRUE(training.causes.empty() && training.shares.empty());
  EXPECT_TRUE(says(training, "dk of kv head 0 has NaN or infinite values")) << training.sentence;
}

TEST(Training, HasNoGainWhereTheTruthIsZero) {
  Case c = generate_case(parse_problem("b1 hq2 hkv1 sq64 sk64 d64 bf16 causal seed=4"), "test");
  for (std::int64_t i = 0; i < c.dout.size(); ++i) c.dout.set(i, 0);
  const Training zero = explained(c, "sink_kernel").training;
  EXPECT_TRUE(zero.given && !zero.changed);
  for (const HeadGradient& g : zero.heads) EXPECT_EQ(std::isnan(g.gain), g.tensor != TensorName::kOut);
  Outputs outputs = find_path("sink_kernel", c).run(c, {}).outputs;
  outputs.dv.set(0, 1);
  c.recorded["loud"] = outputs;
  const Training loud = explained(c, "recorded.loud").training;
  expect_whole(loud, "loud");
  EXPECT_EQ(loud.layer.got, 1);
  EXPECT_TRUE(says(loud, "gradients are not zero where those of exact attention are")) << loud.sentence;
}

TEST(Training, IsNotGivenWithoutGradients) {
  Case c = generate_case(parse_problem(kLine), "test");
  Outputs outputs;
  outputs.out = find_path("sink_kernel", c).run(c, {}).outputs.out;
  c.recorded["forward"] = outputs;
  EXPECT_FALSE(explained(c, "recorded.forward").training.given);
}

}  // namespace
}  // namespace sinkscope
