// SPDX-License-Identifier: Apache-2.0
// Generated inputs: the same bits everywhere, whatever the threads, and of the kind that their fill promises.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "fmt/format.h"
#include "gtest/gtest.h"

#include "src/inputs/case.hpp"
#include "src/inputs/philox.hpp"

namespace sinkscope {
namespace {

Case generated(const std::string& line, int threads = 0) {
  return generate_case(parse_problem(line), "test", threads);
}

// The known answers of the Random123 distribution (Salmon et al. 2011) for ten rounds.
TEST(Philox, GivesThePublishedAnswers) {
  EXPECT_EQ(philox(0, 0, 0), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint64_t kOnes = ~std::uint64_t{0};
  EXPECT_EQ(philox(kOnes, kOnes, kOnes), (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

// A change of these hashes changes every published number: it must be meant.
TEST(GenerateCase, HasTheseBits) {
  const std::map<std::string, std::string> wanted = {
      {"gaussian", "cd14ef603e00c75984cac2a822be112e67436971a10fb060219339caba73d574"},
      {"integers", "adaa5e96c03de8102441d11d109b6cd673523a6921e834c2e19d5248dee10f31"},
      {"cancel", "b6e808632359458ccfadbf507cad57ca6f9b661862b1eb7af0c02ec0368ecbc3"},
      {"loud", "954ccdedec9e1af8ac257c62a2bfb320401881d1aede8c58cbb93f88ae9f78e0"},
      {"ties", "e502e4bae487792f6459de4dea0bcaad84861222f0293faa775ac45d3ab00a0a"},
      {"needle", "74aefc4ffce137ce879b5b0cb8af1726f81fc9a7c0da8dcffd56cd1ddd1054b8"}};
  for (const Fill fill : all_fills()) {
    const Case c =
        generated(fmt::format("b2 hq4 hkv2 sq33 sk40 d64 bf16 dlse fill={} seed=5", name_of(fill)));
    EXPECT_EQ(inputs_sha256(c), wanted.at(std::string(name_of(fill)))) << name_of(fill);
  }
}

TEST(GenerateCase, DoesNotDependOnTheThreads) {
  const std::string line = "b2 hq4 hkv2 sq300 sk200 d64 fp16 dlse sink=extreme seed=3";
  EXPECT_EQ(inputs_sha256(generated(line, 1)), inputs_sha256(generated(line, 7)));
}

// The counter is the element's position, so a longer tensor begins with the shorter one.
TEST(GenerateCase, ATensorDoesNotDependOnTheOthers) {
  const Case with = generated("hq2 hkv2 sq64 sk64 fp32 causal dlse seed=3");
  const Case without = generated("hq2 hkv2 sq64 sk64 fp32 causal w8 sink=none seed=3");
  EXPECT_TRUE(bitwise_equal(with.q, without.q));
  EXPECT_TRUE(bitwise_equal(with.dout, without.dout));
  EXPECT_FALSE(bitwise_equal(with.q, with.k));
}

TEST(GenerateCase, EverySeedIsAnother) {
  EXPECT_NE(inputs_sha256(generated("sq64 seed=1")), inputs_sha256(generated("sq64 seed=2")));
}

TEST(GenerateCase, GaussianHasMeanZeroAndVarianceOne) {
  const std::vector<double> q = generated("hq8 sq512 fp32 seed=1").q.widened();
  double sum = 0, squares = 0;
  for (const double x : q) {
    sum += x;
    squares += x * x;
  }
  const auto n = static_cast<double>(q.size());
  EXPECT_LT(std::fabs(sum / n), 5 / std::sqrt(n));
  EXPECT_LT(std::fabs(squares / n - 1), 5 * std::sqrt(2 / n));
}

TEST(GenerateCase, IntegersAreExactInEveryFormat) {
  for (const char* dtype : {"bf16", "fp16", "fp32"}) {
    const Case c = generated(fmt::format("hq2 hkv2 sq64 {} fill=integers seed=1", dtype));
    for (const Tensor* tensor : {&c.q, &c.k, &c.v, &c.dout}) {
      for (const double x : tensor->widened()) {
        EXPECT_EQ(x, std::nearbyint(x));
        EXPECT_LE(std::fabs(x), 8);
      }
    }
  }
}

TEST(GenerateCase, LoudHeadsSpreadOverThreeDecades) {
  const Case c = generated("hq8 hkv8 sq64 sk64 fp32 fill=loud seed=1");
  const std::int64_t per_head = c.dout.size() / 8;
  double least = INFINITY, most = 0;
  for (std::int64_t head = 0; head < 8; ++head) {
    double squares = 0;
    for (std::int64_t i = 0; i < per_head; ++i) squares += std::pow(c.dout.at(head * per_head + i), 2);
    least = std::min(least, squares);
    most = std::max(most, squares);
  }
  EXPECT_GT(std::sqrt(most / least), 300);
}

TEST(GenerateCase, SinksAreWhatTheLineSays) {
  EXPECT_FALSE(generated("sink=none").sinks.given());
  EXPECT_EQ(generated("hq2 sink=-inf").sinks.at(1), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(generated("hq2 sink=1.5 sink_dtype=bf16").sinks.dtype(), DType::kBf16);
  const std::vector<double> extreme = generated("hq16 sink=extreme").sinks.widened();
  EXPECT_TRUE(std::any_of(extreme.begin(), extreme.end(), [](double s) { return std::isinf(s) && s < 0; }));
  EXPECT_TRUE(std::any_of(extreme.begin(), extreme.end(), [](double s) { return std::isinf(s) && s > 0; }));
}

TEST(UnfitInputs, NamesTheTensorAndThePlace) {
  Case c = generated("hq2 hkv1 sq8 fp32 dlse seed=1");
  EXPECT_TRUE(unfit_inputs(c).empty());
  c.k.set(65, std::nan(""));
  c.sinks.set(1, std::nan(""));
  const std::vector<std::string> reasons = unfit_inputs(c);
  ASSERT_EQ(reasons.size(), 2U);
  EXPECT_NE(reasons[0].find("k has 1 NaN"), std::string::npos) << reasons[0];
  EXPECT_NE(reasons[0].find("[0, 0, 1, 1]"), std::string::npos) << reasons[0];
  EXPECT_NE(reasons[1].find("sinks"), std::string::npos) << reasons[1];
}

TEST(UnfitInputs, InfinityIsLegalInSinksOnly) {
  Case c = generated("hq2 hkv1 sq8 fp32 seed=1");
  c.sinks.set(0, std::numeric_limits<double>::infinity());
  EXPECT_TRUE(unfit_inputs(c).empty());
  c.dout.set(0, std::numeric_limits<double>::infinity());
  EXPECT_EQ(unfit_inputs(c).size(), 1U);
}

}  // namespace
}  // namespace sinkscope
