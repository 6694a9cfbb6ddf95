// SPDX-License-Identifier: Apache-2.0
// The explained fraction of spikes whose making is known, and causes that share a change fairly.
#include "src/spike/explained.hpp"

#include <bit>
#include <cmath>
#include <numeric>

#include "gtest/gtest.h"

#include "src/core/error.hpp"
#include "src/spike/shapley.hpp"

namespace sinkscope {
namespace {

constexpr BeforeSpike kBefore = {1, 1, 0.1};
constexpr double kThreshold = 6;  // exp(0.6): 1.82 times the median is a spike

// Three blocks: the path's mistake is in q of head 1; what else the spike has is in all.
std::vector<BlockNorms> spike_of(double mistake2, double genuine2) {
  return {{{0, "q", 0}, genuine2 / 2, genuine2 / 2, 0},
          {{0, "q", 1}, genuine2 / 4 + mistake2, genuine2 / 4, mistake2},
          {{-1, "outside", -1}, genuine2 / 4, genuine2 / 4, 0}};
}

TEST(Explained, AMistakeAloneIsExplainedWholly) {
  const ExplainedSpike spike = explain_spike(spike_of(24, 1), kBefore, kThreshold);
  EXPECT_DOUBLE_EQ(spike.fraction, 1);
  EXPECT_EQ(spike.verdict, SpikeVerdict::kRemoved);
  EXPECT_DOUBLE_EQ(spike.shares[1], 1);
  EXPECT_DOUBLE_EQ(spike.error2, 24);
}

TEST(Explained, AGenuineSpikeIsNotAttention) {
  const ExplainedSpike spike = explain_spike(spike_of(0.5, 25), kBefore, kThreshold);
  EXPECT_NEAR(spike.fraction, 0.5 / 24.5, 1e-12);
  EXPECT_EQ(spike.verdict, SpikeVerdict::kNotAttention);
}

TEST(Explained, BothTogetherPersistAndShare) {
  const ExplainedSpike spike = explain_spike(spike_of(16, 9), kBefore, kThreshold);
  EXPECT_NEAR(spike.fraction, 16.0 / 24, 1e-12);
  EXPECT_EQ(spike.verdict, SpikeVerdict::kPersists);
}

TEST(Explained, SharesSumToTheSignedFraction) {
  std::vector<BlockNorms> blocks = spike_of(4, 16);
  blocks[0].exact2 = 30;  // exact attention would be longer there
  const ExplainedSpike spike = explain_spike(blocks, kBefore, kThreshold);
  EXPECT_NEAR(std::accumulate(spike.shares.begin(), spike.shares.end(), 0.0), spike.fraction, 1e-12);
  EXPECT_LT(spike.fraction, 0);
  EXPECT_EQ(spike.verdict, SpikeVerdict::kNotAttention);
}

TEST(Explained, TheExactMedianDecidesWhetherItPersists) {
  EXPECT_EQ(explain_spike(spike_of(16, 9), {1, 2, 0.1}, kThreshold).verdict, SpikeVerdict::kRemoved);
  EXPECT_NE(explain_spike(spike_of(16, 9), {1, std::nan(""), 0.1}, kThreshold).verdict,
            SpikeVerdict::kRemoved)
      << "without a median nothing is removed";
}

TEST(Explained, WhatIsNoSpikeIsRefused) {
  EXPECT_THROW(explain_spike(spike_of(0, 0.5), kBefore, kThreshold), std::invalid_argument);
  EXPECT_THROW(explain_spike(spike_of(0, 4), {0, 1, 0.1}, kThreshold), std::invalid_argument);
}

TEST(Explained, WordsAreReadBack) {
  for (const SpikeVerdict verdict :
       {SpikeVerdict::kRemoved, SpikeVerdict::kPersists, SpikeVerdict::kNotAttention})
    EXPECT_EQ(spike_verdict_from_text(text(verdict)), verdict);
  EXPECT_THROW(spike_verdict_from_text("gone"), InputError);
  EXPECT_EQ(text(BlockName{2, "q", 3}), "layer 2 q of head 3");
  EXPECT_EQ(text(BlockName{2, "v", 1}), "layer 2 v of kv head 1");
  EXPECT_EQ(text(BlockName{0, "other", -1}), "layer 0 other");
}

TEST(Shapley, IndependentCausesGetTheirOwnChange) {
  const auto v = [](std::uint32_t mask) { return 1.0 + (mask & 1U ? 5 : 0) + (mask & 2U ? -2 : 0); };
  const CauseShares shares = shapley_shares(2, v, 4.5);
  EXPECT_DOUBLE_EQ(shares.causes[0], 5);
  EXPECT_DOUBLE_EQ(shares.causes[1], -2);
  EXPECT_DOUBLE_EQ(shares.rest, 0.5);
}

TEST(Shapley, WhatOnlyComesOfAllTogetherIsSharedEqually) {
  const auto v = [](std::uint32_t mask) { return mask == 7 ? 12.0 : 0; };
  const CauseShares shares = shapley_shares(3, v, 12);
  for (const double share : shares.causes) EXPECT_DOUBLE_EQ(share, 4);
}

// The glove game: player 0 has a left glove, 1 and 2 a right one each; a pair is worth 1. Shapley: 2/3, 1/6, 1/6.
TEST(Shapley, OrdersAreWeighedRight) {
  const auto v = [](std::uint32_t mask) { return (mask & 1U) != 0 && (mask & 6U) != 0 ? 1.0 : 0; };
  const CauseShares shares = shapley_shares(3, v, 1);
  EXPECT_NEAR(shares.causes[0], 2.0 / 3, 1e-15);
  EXPECT_NEAR(shares.causes[1], 1.0 / 6, 1e-15);
}

TEST(Shapley, EverySubsetIsAskedForOnceAndAllSumsUp) {
  int calls = 0;
  const auto v = [&](std::uint32_t mask) {
    ++calls;
    return std::sin(mask * 1.7) + std::popcount(mask);
  };
  const CauseShares shares = shapley_shares(10, v, 3);
  EXPECT_EQ(calls, 1024);
  EXPECT_NEAR(std::accumulate(shares.causes.begin(), shares.causes.end(), shares.rest), 3 - v(0), 1e-12);
  EXPECT_THROW(shapley_shares(16, v, 1), std::invalid_argument);
  EXPECT_DOUBLE_EQ(shapley_shares(0, v, 5).rest, 5);
}

}  // namespace
}  // namespace sinkscope
