// SPDX-License-Identifier: Apache-2.0
#include "reference/attention.hpp"

#include <cmath>
#include <limits>
#include <string>

#include "gtest/gtest.h"

#include "tests/reference/naive.hpp"

namespace reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void expect_equal(const std::vector<double>& got, const std::vector<double>& ref, double tolerance,
                  const std::string& what) {
  ASSERT_EQ(got.size(), ref.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == ref[i]) continue;  // infinities
    ASSERT_LE(std::abs(got[i] - ref[i]), tolerance * (1 + std::abs(ref[i]))) << what << "[" << i << "]";
  }
}

TEST(HandWorked, WitnessOfTheLogSumExpGradient) {
  const Problem problem{.sq = 1, .sk = 1, .d = 1, .scale = 1};
  const std::vector<double> one = {1}, two = {2}, zero = {0};
  const Result result = attention(problem, {one, one, two, zero, one, {}});

  EXPECT_DOUBLE_EQ(result.value.dq[0], 0.39322386648296376);
  EXPECT_DOUBLE_EQ(result.value.dk[0], 0.39322386648296376);
  EXPECT_DOUBLE_EQ(result.value.out[0], 2 / (1 + std::exp(-1.0)));
  EXPECT_DOUBLE_EQ(result.value.lse[0], std::log(std::exp(1.0) + 1));
  EXPECT_DOUBLE_EQ(result.p_sink[0], 1 / (1 + std::exp(1.0)));
  EXPECT_DOUBLE_EQ(result.value.dsinks[0], -result.p_sink[0] * result.value.out[0]);
}

TEST(HandWorked, TwoEqualKeysAndASinkShareTheRowInThirds) {
  const Problem problem{.sq = 1, .sk = 2, .d = 1, .causal = false, .scale = 1};
  const std::vector<double> q = {0}, k = {3, -7}, v = {6, 12}, sink = {0}, dout = {1}, dlse = {1};
  const Result result = attention(problem, {q, k, v, sink, dout, dlse});

  EXPECT_DOUBLE_EQ(result.value.lse[0], std::log(3.0));
  EXPECT_DOUBLE_EQ(result.value.out[0], 6);
  EXPECT_DOUBLE_EQ(result.value.delta[0], 6);
  // dS = P (dP - Delta + dLSE) = (6 - 6 + 1, 12 - 6 + 1) / 3;  dQ = dS K;  dsink = (1 - 6) / 3
  EXPECT_NEAR(result.value.dq[0], (1.0 * 3 - 7.0 * 7) / 3, 1e-14);
  EXPECT_NEAR(result.value.dv[0], 1.0 / 3, 1e-15);
  EXPECT_NEAR(result.value.dsinks[0], -5.0 / 3, 1e-15);
  EXPECT_NEAR(result.entropy[0], std::log(3.0), 1e-15);
}

TEST(Rows, WithoutKeysGiveAllToTheSink) {
  // Bottom-right alignment: with three rows and one key only the last row sees it.
  const Problem problem{.sq = 3, .sk = 1, .d = 2, .scale = 1};
  naive::Data data = naive::random_data(problem, 1);
  const Result result = attention(problem, data.inputs());

  for (std::size_t row = 0; row < 2; ++row) {
    EXPECT_EQ(result.value.lse[row], data.sinks[0]);
    EXPECT_EQ(result.p_sink[row], 1);
    EXPECT_EQ(result.value.out[2 * row], 0);
    EXPECT_EQ(result.value.dq[2 * row + 1], 0);
    EXPECT_EQ(result.entropy[row], 0);
  }
  const double last = result.p_sink[2] * (data.dlse[2] - result.value.delta[2]);
  EXPECT_NEAR(result.value.dsinks[0], data.dlse[0] + data.dlse[1] + last, 1e-14);

  data.sinks.clear();
  const Result plain = attention(problem, data.inputs());
  EXPECT_EQ(plain.value.lse[0], -kInfinity);
  EXPECT_EQ(plain.p_sink[0], 0);
  EXPECT_EQ(plain.value.out[0], 0);
  EXPECT_EQ(plain.value.dsinks[0], 0);
}

TEST(Sink, OfMinusInfinityIsPlainAttentionToTheBit) {
  const Problem problem{.b = 2, .hq = 4, .hkv = 2, .sq = 70, .sk = 70, .d = 8, .window = 33, .scale = 0.3};
  naive::Data data = naive::random_data(problem, 2, false);
  const Result plain = attention(problem, data.inputs());
  data.sinks.assign(4, -kInfinity);
  const Result with = attention(problem, data.inputs());

  EXPECT_EQ(with.value.out, plain.value.out);
  EXPECT_EQ(with.value.dq, plain.value.dq);
  EXPECT_EQ(with.value.dk, plain.value.dk);
  EXPECT_EQ(with.value.dv, plain.value.dv);
  EXPECT_EQ(with.value.lse, plain.value.lse);
  EXPECT_EQ(with.value.dsinks, std::vector<double>(4, 0.0));
}

TEST(Sink, OfPlusInfinityTakesEverything) {
  const Problem problem{.hq = 2, .hkv = 1, .sq = 5, .sk = 5, .d = 4, .scale = 1};
  naive::Data data = naive::random_data(problem, 3);
  data.sinks = {kInfinity, 0.5};
  const Result result = attention(problem, data.inputs());

  double sum = 0;
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(result.value.lse[i], kInfinity);
    EXPECT_EQ(result.p_sink[i], 1);
    sum += data.dlse[i];
  }
  for (std::size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(result.value.out[i], 0);
    EXPECT_EQ(result.value.dq[i], 0);
  }
  EXPECT_NEAR(result.value.dsinks[0], sum, 1e-14);
  EXPECT_TRUE(std::isfinite(result.value.dk[0]));
}

TEST(Sink, HugeButFiniteKeepsTheLogSumExpFinite) {
  const Problem problem{.sq = 4, .sk = 4, .d = 4, .scale = 1};
  naive::Data data = naive::random_data(problem, 4);
  for (const double sink : {100.0, 1e4, -1e4}) {
    data.sinks = {sink};
    const Result result = attention(problem, data.inputs());
    for (const double lse : result.value.lse) EXPECT_TRUE(std::isfinite(lse)) << sink;
    if (sink > 0) {
      EXPECT_EQ(result.value.lse[3], sink);
    }
  }
}

struct Feature {
  std::string name;
  Problem problem;
  std::vector<double> sinks;  // empty: random
  bool dlse = true;
};

class EveryFeature : public testing::TestWithParam<Feature> {
 protected:
  naive::Data data() const {
    naive::Data data = naive::random_data(GetParam().problem, 7, true, GetParam().dlse);
    if (!GetParam().sinks.empty()) data.sinks = GetParam().sinks;
    return data;
  }
};

TEST_P(EveryFeature, GradientsEqualCentralDifferences) {
  naive::Data data = this->data();
  const Result result = attention(data.problem, data.inputs());

  // The step's own error is about 2^-26 of the third derivative; long double keeps the rest below it.
  const auto expect = [&](std::vector<double>& input, const std::vector<double>& got,
                          const std::string& what) {
    for (std::size_t i = 0; i < input.size(); ++i) {
      if (!std::isfinite(input[i])) continue;
      const double wanted = naive::derivative(data, input[i]);
      ASSERT_NEAR(got[i], wanted, 2e-6 * (1 + std::abs(wanted))) << what << "[" << i << "]";
    }
  };
  expect(data.q, result.value.dq, "dq");
  expect(data.k, result.value.dk, "dk");
  expect(data.v, result.value.dv, "dv");
  expect(data.sinks, result.value.dsinks, "dsinks");
}

TEST_P(EveryFeature, ForwardEqualsThePlainFormulas) {
  const naive::Data data = this->data();
  const Problem& p = data.problem;
  const Result result = attention(p, data.inputs());

  for (std::int64_t head = 0; head < p.b * p.hq; ++head) {
    const std::int64_t kv = head / (p.hq / p.hkv);
    for (std::int64_t i = 0; i < p.sq; ++i) {
      const auto flat = static_cast<std::size_t>(head * p.sq + i);
      const naive::Row row = naive::row_of(data, head / p.hq, head % p.hq, i);
      naive::Real entropy = row.p_sink > 0 ? -row.p_sink * std::log(row.p_sink) : 0;
      for (const naive::Real probability : row.p) {
        if (probability > 0) entropy -= probability * std::log(probability);
      }
      expect_equal({result.value.lse[flat]}, {static_cast<double>(row.lse)}, 1e-13, "lse");
      ASSERT_NEAR(result.p_sink[flat], static_cast<double>(row.p_sink), 1e-13);
      ASSERT_NEAR(result.entropy[flat], static_cast<double>(entropy), 1e-12);
      for (std::int64_t c = 0; c < p.d; ++c) {
        naive::Real out = 0;
        for (std::int64_t j = 0; j < p.sk; ++j) {
          out += row.p[static_cast<std::size_t>(j)] *
                 data.v[static_cast<std::size_t>((kv * p.sk + j) * p.d + c)];
        }
        ASSERT_NEAR(result.value.out[flat * static_cast<std::size_t>(p.d) + static_cast<std::size_t>(c)],
                    static_cast<double>(out), 1e-13);
      }
    }
  }
}

// sum_j dS_ij + p_i (dLSE_i - Delta_i) = dLSE_i: with K of ones, dQ is scale * sum_j dS_ij in every column.
TEST_P(EveryFeature, RowsOfDsAddUpToTheUpstreamGradientOfTheLse) {
  naive::Data data = this->data();
  std::fill(data.k.begin(), data.k.end(), 1.0);
  const Problem& p = data.problem;
  const Result result = attention(p, data.inputs());

  for (std::size_t row = 0; row < result.value.lse.size(); ++row) {
    const double dlse = data.dlse.empty() ? 0 : data.dlse[row];
    const double sum_ds = result.value.dq[row * static_cast<std::size_t>(p.d)] / p.scale;
    if (result.value.lse[row] == -kInfinity)
      continue;  // neither keys nor a sink: nothing depends on anything
    ASSERT_NEAR(sum_ds + result.p_sink[row] * (dlse - result.value.delta[row]), dlse, 1e-12) << "row " << row;
  }
}

TEST_P(EveryFeature, ValuesOfOneGiveOneMinusTheSinkMass) {
  naive::Data data = this->data();
  std::fill(data.v.begin(), data.v.end(), 1.0);
  const Result result = attention(data.problem, data.inputs());

  const auto d = static_cast<std::size_t>(data.problem.d);
  for (std::size_t row = 0; row < result.value.lse.size(); ++row) {
    if (result.value.lse[row] == -kInfinity) continue;
    ASSERT_NEAR(result.value.out[row * d + d - 1], 1 - result.p_sink[row], 1e-14) << "row " << row;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Reference, EveryFeature,
    testing::Values(
        Feature{"plain", {.hq = 2, .hkv = 2, .sq = 6, .sk = 6, .d = 3, .causal = false, .scale = 0.7}, {}},
        Feature{"causal", {.b = 2, .hq = 2, .hkv = 2, .sq = 6, .sk = 6, .d = 3, .scale = 0.7}, {}},
        Feature{"no_dlse", {.hq = 2, .hkv = 1, .sq = 5, .sk = 5, .d = 3, .scale = 0.7}, {}, false},
        Feature{"grouped_heads", {.b = 2, .hq = 6, .hkv = 2, .sq = 4, .sk = 4, .d = 2, .scale = 0.9}, {}},
        Feature{"window", {.hq = 2, .hkv = 1, .sq = 8, .sk = 8, .d = 2, .window = 3, .scale = 0.9}, {}},
        Feature{"more_keys", {.hq = 2, .hkv = 1, .sq = 3, .sk = 7, .d = 2, .window = 4, .scale = 0.9}, {}},
        Feature{"more_rows", {.hq = 2, .hkv = 1, .sq = 7, .sk = 3, .d = 2, .scale = 0.9}, {}},
        Feature{"infinite_sinks",
                {.hq = 3, .hkv = 1, .sq = 4, .sk = 4, .d = 2, .scale = 0.9},
                {-kInfinity, kInfinity, 0.3}},
        Feature{"no_keys_no_sink", {.hq = 1, .hkv = 1, .sq = 4, .sk = 2, .d = 2, .scale = 0.9}, {-kInfinity}},
        Feature{"documents",
                {.hq = 2,
                 .hkv = 1,
                 .sq = 8,
                 .sk = 8,
                 .d = 2,
                 .scale = 0.9,
                 .cu_q = {0, 3, 3, 8},
                 .cu_k = {0, 3, 3, 8}},
                {}},
        Feature{"documents_of_unequal_keys",
                {.hq = 2,
                 .hkv = 1,
                 .sq = 7,
                 .sk = 9,
                 .d = 2,
                 .window = 2,
                 .scale = 0.9,
                 .cu_q = {0, 4, 6, 6, 7},
                 .cu_k = {0, 2, 7, 9, 9}},
                {}}),
    [](const auto& feature) { return feature.param.name; });

TEST(Identity, ShiftingEveryLogitAndTheSinkMovesOnlyTheLse) {
  // With a key coordinate of ones, a constant in that coordinate of q adds the same shift to every logit.
  const Problem problem{.hq = 2, .hkv = 1, .sq = 40, .sk = 40, .d = 5, .scale = 1};
  naive::Data data = naive::random_data(problem, 8);
  for (std::size_t i = 4; i < data.k.size(); i += 5) data.k[i] = 1;
  const Result before = attention(problem, data.inputs());
  constexpr double kShift = 2.5;
  for (std::size_t i = 4; i < data.q.size(); i += 5) data.q[i] += kShift;
  for (double& sink : data.sinks) sink += kShift;
  const Result after = attention(problem, data.inputs());

  expect_equal(after.value.out, before.value.out, 1e-13, "out");
  expect_equal(after.value.dq, before.value.dq, 1e-12, "dq");
  expect_equal(after.value.dv, before.value.dv, 1e-12, "dv");
  expect_equal(after.value.dsinks, before.value.dsinks, 1e-12, "dsinks");
  for (std::size_t i = 0; i < before.value.lse.size(); ++i) {
    ASSERT_NEAR(after.value.lse[i], before.value.lse[i] + kShift, 1e-13);
  }
}

// Tiles and row blocks: many of each, and partly masked ones, against one row at a time.
TEST(Tiling, LongSequencesEqualTheirRowsComputedAlone) {
  const Problem problem{.hq = 2, .hkv = 1, .sq = 300, .sk = 1200, .d = 4, .window = 700, .scale = 0.5};
  const naive::Data data = naive::random_data(problem, 9);
  const Result result = attention(problem, data.inputs());

  for (const std::int64_t i : {0, 127, 128, 255, 299}) {
    const naive::Row row = naive::row_of(data, 0, 1, i);
    ASSERT_NEAR(result.value.lse[static_cast<std::size_t>(300 + i)], static_cast<double>(row.lse), 1e-12);
  }
  double by_rows = 0;
  for (std::size_t i = 0; i < 600; ++i) {
    if (i >= 300) by_rows += result.p_sink[i] * (data.dlse[i] - result.value.delta[i]);
  }
  EXPECT_NEAR(result.value.dsinks[1], by_rows, 1e-10);
}

TEST(Threads, DoNotChangeABit) {
  for (const std::int64_t hkv : {1, 3}) {
    const Problem problem{
        .b = 2, .hq = 6, .hkv = hkv, .sq = 150, .sk = 150, .d = 8, .window = 40, .scale = 0.3};
    const naive::Data data = naive::random_data(problem, 10);
    const Result one = attention(problem, data.inputs(), {}, {.threads = 1});
    const Result many = attention(problem, data.inputs(), {}, {.threads = 7});

    EXPECT_EQ(one.value.dk, many.value.dk);
    EXPECT_EQ(one.value.dv, many.value.dv);
    EXPECT_EQ(one.value.dq, many.value.dq);
    EXPECT_EQ(one.value.dsinks, many.value.dsinks);
    EXPECT_EQ(one.sigma.dk, many.sigma.dk);
    EXPECT_EQ(one.sigma.lse, many.sigma.lse);
  }
}

TEST(Sigma, IsNotNeededForTheValues) {
  const Problem problem{.hq = 2, .hkv = 1, .sq = 33, .sk = 33, .d = 8, .scale = 0.3};
  const naive::Data data = naive::random_data(problem, 11);
  const Result with = attention(problem, data.inputs());
  const Result without = attention(problem, data.inputs(), {}, {.sigma = false});

  EXPECT_EQ(with.value.dq, without.value.dq);
  EXPECT_EQ(with.value.out, without.value.out);
  EXPECT_TRUE(without.sigma.out.empty());
}

TEST(BadSizes, AreRefusedWithTheValueSeenAndTheValueWanted) {
  const Problem problem{.sq = 2, .sk = 2, .d = 2};
  const std::vector<double> four(4), three(3);
  try {
    attention(problem, {four, three, four, {}, {}, {}});
    FAIL() << "a short k was accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()), "truth: k has 3 elements, wanted 4");
  }
  Problem odd = problem;
  odd.hq = 3;
  odd.hkv = 2;
  EXPECT_THROW(attention(odd, {four, four, four, {}, {}, {}}), std::invalid_argument);
  Problem packed = problem;
  packed.cu_q = packed.cu_k = {0, 1};
  EXPECT_THROW(attention(packed, {four, four, four, {}, {}, {}}), std::invalid_argument);
  Problem window = problem;
  window.causal = false;
  window.window = 1;
  EXPECT_THROW(attention(window, {four, four, four, {}, {}, {}}), std::invalid_argument);
}

}  // namespace
}  // namespace reference
