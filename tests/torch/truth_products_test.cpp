// SPDX-License-Identifier: Apache-2.0
// The truth by libtorch's products agrees with the Eigen truth: its formulas, on the CPU.
#include <string>

#include "gtest/gtest.h"

#include "src/torch/module.hpp"
#include "tests/torch/truth_agreement.hpp"

namespace sinkscope {
namespace {

class ProductTruth : public testing::TestWithParam<std::string> {};

TEST_P(ProductTruth, AgreesWithTheEigenTruth) {
  ASSERT_NE(torch_module().cpu_truth, nullptr) << torch_module().unavailable;
  const Case c = generate_case(parse_problem(GetParam()), "test");
  expect_agreement(GetParam(), c, torch_module().cpu_truth(c));
}

INSTANTIATE_TEST_SUITE_P(Lines, ProductTruth, testing::ValuesIn(truth_lines()));

TEST(ProductTruth, NeedsNoGradients) {
  Case c = generate_case(parse_problem("b1 hq4 hkv2 sq300 sk300 d64 bf16 causal seed=1"), "test");
  c.dout = {};
  const Truth got = torch_module().cpu_truth(c);
  EXPECT_TRUE(got.value.dq.empty() && got.sigma.dsinks.empty() && got.value.delta.empty());
  EXPECT_LE(disagreement(c, got, compute_truth(c)).values, kValueLimit);
}

// What the agreement rests on: a wrong value, a wrong sigma and a lost infinity are each seen.
TEST(TruthAgreement, SeesAMistake) {
  const Case c = generate_case(parse_problem("b1 hq4 hkv2 sq20 sk20 d64 bf16 causal seed=1"), "test");
  const Truth ref = compute_truth(c);
  Truth got = ref;
  EXPECT_EQ(disagreement(c, got, ref).values, 0);
  got.value.dk[5] += 1e-10;
  EXPECT_GT(disagreement(c, got, ref).values, kValueLimit);
  EXPECT_EQ(disagreement(c, got, ref).farthest, "dk of head 0");
  got = ref;
  got.sigma.dsinks[3] *= 1.001;
  EXPECT_GT(disagreement(c, got, ref).sigma_element, kSigmaLimit);
  got = ref;
  got.value.lse[0] = -std::numeric_limits<double>::infinity();
  EXPECT_FALSE(disagreement(c, got, ref).same_infinities);
}

}  // namespace
}  // namespace sinkscope
