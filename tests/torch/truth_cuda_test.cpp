// SPDX-License-Identifier: Apache-2.0
// The truth on the GPU agrees with the Eigen truth to 1e-12 per head, whatever the feature.
#include <cstring>
#include <string>

#include "gtest/gtest.h"

#include "src/torch/module.hpp"
#include "tests/require_gpu.hpp"
#include "tests/torch/truth_agreement.hpp"

namespace sinkscope {
namespace {

class CudaTruth : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const TorchModule& torch = torch_module();
    require_gpu(torch.unavailable.empty() ? torch.cuda_unavailable : torch.unavailable);
  }
};

TEST_P(CudaTruth, AgreesWithTheEigenTruth) {
  const Case c = generate_case(parse_problem(GetParam()), "test");
  expect_agreement(GetParam(), c, torch_module().cuda_truth(c));
}

INSTANTIATE_TEST_SUITE_P(Lines, CudaTruth, testing::ValuesIn(truth_lines()));

class CudaTruthTwice : public CudaTruth {};

TEST_P(CudaTruthTwice, GivesTheSameBits) {
  const Case c = generate_case(parse_problem(GetParam()), "test");
  const Truth first = torch_module().cuda_truth(c), again = torch_module().cuda_truth(c);
  const auto same = [](const std::vector<double>& a, const std::vector<double>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
  };
  for (const auto& [a, b] : {std::pair{&first.value, &again.value}, std::pair{&first.sigma, &again.sigma}}) {
    EXPECT_TRUE(same(a->out, b->out) && same(a->lse, b->lse) && same(a->delta, b->delta));
    EXPECT_TRUE(same(a->dq, b->dq) && same(a->dk, b->dk) && same(a->dv, b->dv) && same(a->dsinks, b->dsinks));
  }
}

INSTANTIATE_TEST_SUITE_P(Lines, CudaTruthTwice,
                         testing::Values("b1 hq16 hkv2 sq700 sk700 d64 bf16 causal dlse seed=1",
                                         "b1 hq2 hkv1 sq9001 sk9001 d64 bf16 causal seed=2"));

}  // namespace
}  // namespace sinkscope
