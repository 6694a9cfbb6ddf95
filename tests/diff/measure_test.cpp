// SPDX-License-Identifier: Apache-2.0
// Metrics against values worked out by hand.
#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "gtest/gtest.h"

#include "src/diff/diff.hpp"

namespace sinkscope {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One head of `rows` rows and two columns in fp32, with out's truth and sigma given outright.
struct Bench {
  explicit Bench(std::int64_t rows) {
    c.problem.shape = {.b = 1, .hq = 1, .hkv = 1, .sq = rows, .sk = rows, .d = 2, .dtype = DType::kFp32};
    truth.value.out.assign(static_cast<std::size_t>(2 * rows), 1);
    truth.sigma.out.assign(truth.value.out.size(), 1);
    got = truth.value.out;
  }
  HeadMetrics run() const {
    const auto rows = static_cast<std::int64_t>(got.size() / 2);
    return measure(c, truth, TensorName::kOut, Tensor::rounded(DType::kFp32, {1, 1, rows, 2}, got))
        .heads.at(0);
  }

  Case c;
  Truth truth;
  std::vector<double> got;
};

TEST(Measure, NothingWrong) {
  const HeadMetrics m = Bench(4).run();
  EXPECT_EQ(m.z_rms, 0);
  EXPECT_EQ(m.z_max, 0);
  EXPECT_EQ(m.rel_l2, 0);
  EXPECT_EQ(m.gain, 1);
  EXPECT_DOUBLE_EQ(m.cosine, 1);
  EXPECT_FALSE(m.all_zero);
}

// What rows of padding hold means nothing, and a head's limit follows the rows that are left.
TEST(Measure, PaddingIsNotMeasured) {
  Bench bench(4);
  bench.got[4] = kNaN;
  bench.got[7] = 1e30;
  EXPECT_EQ(bench.run().nonfinite_mismatch, 1);
  bench.c.problem.shape.seqlens = {2};
  EXPECT_EQ(bench.run().nonfinite_mismatch, 0);
  EXPECT_EQ(bench.run().z_max, 0);
  bench.got[3] = 1 + 0x1p-20;
  EXPECT_EQ(bench.run().z_max_at.row, 1);
  TensorMetrics metrics{TensorName::kOut, 2, 2, 9, std::vector<HeadMetrics>(4), {5, 7}};
  EXPECT_EQ(metrics.rows_of(1), 5);
  EXPECT_EQ(metrics.rows_of(2), 7);
  EXPECT_TRUE(real_rows(bench.c.problem.shape, TensorName::kDsinks).empty());
}

// Truth (3, 4), (0, 5); got (3, 4 + 2^-10), (-2^-9, 5).
TEST(Measure, HandWorkedValues) {
  Bench bench(2);
  bench.truth.value.out = {3, 4, 0, 5};
  bench.truth.sigma.out = {1, 4, 2, 5};
  bench.got = {3, 4 + 0x1p-10, -0x1p-9, 5};

  const HeadMetrics m = bench.run();

  const double z1 = 0x1p-10 / (0x1p-24 * 4), z2 = 0x1p-9 / (0x1p-24 * 2);
  EXPECT_DOUBLE_EQ(m.z_rms, std::sqrt((z1 * z1 + z2 * z2) / 4));
  EXPECT_DOUBLE_EQ(m.z_row, z2 / std::sqrt(2.0));
  EXPECT_EQ(m.z_row_at, 1);
  EXPECT_DOUBLE_EQ(m.z_max, z2);
  EXPECT_EQ(m.z_max_at.row, 1);
  EXPECT_EQ(m.z_max_at.column, 0);
  EXPECT_EQ(m.max_abs, 0x1p-9);
  EXPECT_EQ(m.max_abs_at.row, 1);
  EXPECT_DOUBLE_EQ(m.mean_abs, (0x1p-10 + 0x1p-9) / 4);
  const double norm_err = std::hypot(0x1p-10, 0x1p-9);
  EXPECT_DOUBLE_EQ(m.rel_l2, norm_err / std::sqrt(50.0));
  EXPECT_DOUBLE_EQ(m.norm_ref, std::sqrt(50.0));
  EXPECT_DOUBLE_EQ(m.gain, (50 + 4 * 0x1p-10) / 50);
  EXPECT_DOUBLE_EQ(m.bias, 4 * 0x1p-10 / 50);
  EXPECT_DOUBLE_EQ(m.bias_z, 4 * 0x1p-10 / (0x1p-24 * (3 + 16 + 25)));
  EXPECT_EQ(m.bias_t, 0) << "two rows are too few for the test";
  EXPECT_DOUBLE_EQ(m.ulp_max, 0x1p-9 / std::ldexp(1.0, -149));  // the truth is 0 there
}

TEST(Measure, UlpsAreOfTheTruthsBinade) {
  Bench bench(2);
  bench.truth.value.out = {4, 4, 4, 4};
  bench.got = {4 + 0x1p-21, 4 + 0x1p-20, 4, 4};  // fp32 has 2^-21 between neighbours at 4
  const HeadMetrics m = bench.run();
  EXPECT_EQ(m.ulp_p50, 0);
  EXPECT_EQ(m.ulp_max, 2);
}

TEST(Measure, NonFinitePatternMustBeTheTruths) {
  Bench bench(2);
  bench.truth.value.out = {kInfinity, 1, 1, 1};
  bench.got = {kInfinity, 1, 1, 1};
  EXPECT_EQ(bench.run().nonfinite, 1);
  EXPECT_EQ(bench.run().nonfinite_mismatch, 0);
  bench.got = {-kInfinity, 1, 1, kNaN};
  const HeadMetrics m = bench.run();
  EXPECT_EQ(m.nonfinite, 2);
  EXPECT_EQ(m.nonfinite_mismatch, 2);
  EXPECT_EQ(m.nonfinite_at.row, 0);
  bench.got = {7, 1, 1, 1};
  EXPECT_EQ(bench.run().nonfinite_mismatch, 1) << "a finite number where the truth is infinite";
}

TEST(Measure, ZerosAndSubnormals) {
  Bench bench(2);
  bench.got = {0, 0, 0, 0};
  EXPECT_TRUE(bench.run().all_zero);
  EXPECT_EQ(bench.run().zeros, 4);
  EXPECT_EQ(bench.run().gain, 0);
  EXPECT_EQ(bench.run().rel_l2, 1);
  bench.truth.value.out = {0, 0, 0, 0};
  EXPECT_FALSE(bench.run().all_zero) << "nothing is lost where the truth is zero";
  EXPECT_TRUE(bench.run().ref_all_zero);
  bench.got = {0x1p-130, 0, 0, 1};
  EXPECT_EQ(bench.run().subnormals, 1);
  EXPECT_EQ(bench.run().gain, kInfinity);
}

// A missing sigma with an error is infinitely far off; without an error it is nothing.
TEST(Measure, ZeroSigma) {
  Bench bench(2);
  bench.truth.sigma.out = {0, 1, 1, 1};
  EXPECT_EQ(bench.run().z_max, 0);
  bench.got[0] = 1 + 0x1p-20;
  EXPECT_EQ(bench.run().z_max, kInfinity);
}

TEST(Measure, BiasNeedsTheSameSignInAllBlocks) {
  Bench bench(160);
  for (std::size_t i = 0; i < bench.got.size(); ++i) {
    const double wobble = static_cast<double>(i % 7);
    bench.got[i] = 1 + (100 + wobble) * 0x1p-23;
  }
  const HeadMetrics biased = bench.run();
  EXPECT_GT(biased.bias_t, 100);
  EXPECT_NEAR(biased.bias_z, 206, 1);
  for (std::size_t i = 0; i < bench.got.size(); i += 2) bench.got[i] = 2 - bench.got[i];
  EXPECT_LT(std::fabs(bench.run().bias_t), 5);
}

TEST(Measure, ProfileFollowsThePosition) {
  Bench bench(160);
  bench.got[2 * 150] = 1 + 0x1p-10;
  const HeadMetrics m = bench.run();
  EXPECT_GT(m.profile[15], 0);
  for (std::size_t bin = 0; bin < 15; ++bin) EXPECT_EQ(m.profile[bin], 0);
}

TEST(Measure, ComparesWithTheBaseline) {
  Bench bench(2);
  bench.truth.value.out = {1, 1, 1, 1};
  bench.got = {1 + 0x1p-10, 1, 1, 1};
  const Tensor eager = Tensor::rounded(DType::kFp32, {1, 1, 2, 2}, bench.got);
  const TensorMetrics baseline = measure(bench.c, bench.truth, TensorName::kOut, eager);
  bench.got[0] = 1 + 0x1p-8;
  const Tensor worse = Tensor::rounded(DType::kFp32, {1, 1, 2, 2}, bench.got);
  const HeadMetrics m = measure(bench.c, bench.truth, TensorName::kOut, worse, &baseline).heads.at(0);
  EXPECT_DOUBLE_EQ(m.eager_ratio, 4);
  EXPECT_NEAR(m.fa_ratio, 2, 0.01);
}

TEST(Measure, RefusesAnotherShape) {
  const Bench bench(2);
  EXPECT_THROW(measure(bench.c, bench.truth, TensorName::kOut, Tensor(DType::kFp32, {1, 1, 3, 2})),
               std::invalid_argument);
}

TEST(Measure, TellsRepeatsApartHeadByHead) {
  TensorMetrics metrics{TensorName::kOut, 1, 2, 1, std::vector<HeadMetrics>(2)};
  Tensor first(DType::kFp32, {1, 2, 3, 4});
  Tensor again = first;
  again.set(13, -0.0);
  mark_unrepeatable(metrics, first, again);
  EXPECT_TRUE(metrics.heads[0].repeatable);
  EXPECT_FALSE(metrics.heads[1].repeatable) << "-0 is not the same bits as 0";
}

// Facts of two rows with sinks of mass 1/2 and 3/4.
TEST(HeadFactsOfACase, PredictTheGainWithoutTheSink) {
  Case c;
  c.problem.shape = {.b = 1, .hq = 1, .hkv = 1, .sq = 2, .sk = 2, .d = 1};
  Truth truth;
  truth.value.out = {1, 2};
  truth.value.lse = {-1, 3};
  truth.p_sink = {0.5, 0.75};
  truth.entropy = {1, 2};
  const HeadFacts facts = head_facts(c, truth);
  EXPECT_DOUBLE_EQ(facts.p_sink_mean.at(0), 0.625);
  EXPECT_DOUBLE_EQ(facts.p_sink_max.at(0), 0.75);
  EXPECT_DOUBLE_EQ(facts.predicted_gain.at(0), (1 / 0.5 + 4 / 0.25) / 5);
  EXPECT_EQ(facts.lse_min.at(0), -1);
  EXPECT_EQ(facts.lse_max.at(0), 3);
  EXPECT_EQ(facts.entropy.at(0), 1.5);
}

TEST(Metrics, AreNamedOnceAndComeBack) {
  std::set<std::string_view> names;
  for (const MetricInfo& metric : all_metrics()) {
    EXPECT_TRUE(names.insert(metric.name).second) << metric.name;
    HeadMetrics m;
    metric.assign(m, 1);
    EXPECT_EQ(metric.value(m), 1) << metric.name;
  }
  EXPECT_GT(names.size(), 25U);
}

}  // namespace
}  // namespace sinkscope
