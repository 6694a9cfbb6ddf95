// SPDX-License-Identifier: Apache-2.0
// What each libtorch path is: exact, sink-less, or wrong in its one known way. In fp32, where rounding hides nothing.
#include <cmath>
#include <cstdlib>
#include <string>

#include "gtest/gtest.h"

#include "src/diff/diff.hpp"
#include "src/paths/table.hpp"
#include "src/torch/module.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {
namespace {

Case generated(const std::string& line) {
  return generate_case(parse_problem(line), "test");
}

// Relative L2 of one tensor over all heads.
double error_of(const Case& c, const Outputs& outputs, TensorName name) {
  const Truth truth = compute_truth(c);
  double err2 = 0, ref2 = 0;
  for (const HeadMetrics& m : measure(c, truth, name, outputs[name]).heads) {
    err2 += std::pow(m.rel_l2 * m.norm_ref, 2);
    ref2 += m.norm_ref * m.norm_ref;
  }
  return std::sqrt(err2 / ref2);
}

Outputs run(const std::string& path, const Case& c) {
  const Path found = find_path(path, c);
  EXPECT_FALSE(found.unsupported(c).has_value()) << path << ": " << found.unsupported(c).value_or("");
  return found.run(c, {}).outputs;
}

constexpr double kRight = 2e-5;  // of fp32, with ATen's exp
constexpr double kWrong = 1e-2;

class ExactPaths : public testing::TestWithParam<const char*> {};

TEST_P(ExactPaths, AgreeWithTheTruth) {
  const Case c = generated(GetParam());
  for (const char* path : {"flash_attention_2_sink", "eager_fp32", "eager"}) {
    const Outputs outputs = run(path, c);
    for (const TensorName name : {TensorName::kOut, TensorName::kDq, TensorName::kDk, TensorName::kDv}) {
      EXPECT_LT(error_of(c, outputs, name), kRight) << path << " " << text(name);
    }
    if (c.sinks.given()) {
      EXPECT_LT(error_of(c, outputs, TensorName::kDsinks), kRight) << path;
    }
  }
  EXPECT_LT(error_of(c, run("flash_attention_2_sink", c), TensorName::kLse), kRight);
}

INSTANTIATE_TEST_SUITE_P(
    Lines, ExactPaths,
    testing::Values("b2 hq4 hkv2 sq70 sk70 d64 fp32 causal seed=1",
                    "b1 hq4 hkv1 sq70 sk90 d64 fp32 causal seed=2",
                    "b1 hq4 hkv4 sq90 sk90 d32 fp32 causal w17 seed=3",
                    "b1 hq2 hkv1 sq50 sk70 d128 fp32 full seed=4",
                    "b1 hq4 hkv2 sq100 sk100 d64 fp32 causal docs=40,1,59 seed=5",
                    "b1 hq4 hkv2 sq100 sk100 d64 fp32 causal w9 docs=40,0,60 seed=6",
                    "b1 hq4 hkv2 sq70 sk70 d64 fp32 causal scale=0.3 layout=bshd seed=7"));

TEST(FlashAttention2, IgnoresTheSink) {
  const Case c = generated("b1 hq4 hkv2 sq70 sk70 d64 fp32 causal seed=1");
  Case sinkless = c;
  sinkless.sinks = {};
  const Outputs outputs = run("flash_attention_2", c);
  for (const TensorName name :
       {TensorName::kOut, TensorName::kLse, TensorName::kDq, TensorName::kDk, TensorName::kDv}) {
    EXPECT_GT(error_of(c, outputs, name), kWrong) << text(name);
    EXPECT_LT(error_of(sinkless, outputs, name), kRight) << text(name);
  }
  EXPECT_FALSE(outputs.dsinks.given());
}

TEST(FlashAttention2Rescaled, DropsTheGradientOfTheLse) {
  const Case c = generated("b1 hq4 hkv2 sq70 sk70 d64 fp32 causal seed=1");
  const Outputs outputs = run("flash_attention_2_rescaled", c);
  for (const TensorName name : {TensorName::kOut, TensorName::kLse, TensorName::kDv, TensorName::kDsinks})
    EXPECT_LT(error_of(c, outputs, name), kRight) << text(name);
  EXPECT_GT(error_of(c, outputs, TensorName::kDq), kWrong);
  EXPECT_GT(error_of(c, outputs, TensorName::kDk), kWrong);
}

// Rows that see no key, and a sink that takes everything or nothing.
TEST(FlashAttention2Sink, IsExactAtTheEdges) {
  for (const char* line : {"b1 hq2 hkv1 sq90 sk50 d64 fp32 causal seed=1",
                           "b1 hq4 hkv2 sq60 sk60 d64 fp32 causal sink=-inf seed=2",
                           "b1 hq4 hkv2 sq60 sk60 d64 fp32 causal sink=inf seed=3"}) {
    const Case c = generated(line);
    const Outputs outputs = run("flash_attention_2_sink", c);
    for (const TensorName name : kTensorNames) {
      for (const HeadMetrics& m : measure(c, compute_truth(c), name, outputs[name]).heads) {
        EXPECT_EQ(m.nonfinite_mismatch, 0) << line << " " << text(name);
        EXPECT_LT(m.max_abs, 1e-4) << line << " " << text(name);
      }
    }
  }
}

TEST(TorchPaths, SayWhatTheyCannotDo) {
  const Case dlse = generated("b1 hq2 hkv1 sq20 sk20 d64 fp32 causal dlse");
  EXPECT_NE(
      find_path("flash_attention_2_sink", dlse).unsupported(dlse).value_or("").find("gradient of the LSE"),
      std::string::npos);
  EXPECT_TRUE(find_path("eager", dlse).unsupported(dlse).has_value());
}

// Without a GPU there is nothing to lay out, and asking for one says why it cannot be.
TEST(TorchPaths, SayWhyThereIsNoGpu) {
  const std::string& reason = torch_module().cuda_unavailable;
  if (reason.empty()) GTEST_SKIP() << "there is one";
  const Case c = generated("b1 hq2 hkv1 sq20 sk20 d64 bf16 causal");
  for (const Path& path : torch_module().paths) {
    EXPECT_FALSE(path.prepare) << path.name;
    EXPECT_EQ(path.backends, "libtorch (cpu)");
    EXPECT_TRUE(path.run(c, {}).backend.starts_with("cpu ")) << path.name;
    ::setenv("SINKSCOPE_DEVICE", "cuda", 1);
    EXPECT_EQ(path.unsupported(c).value_or(""), reason) << path.name;
    ::unsetenv("SINKSCOPE_DEVICE");
  }
}

// In bf16, eager rounds logits and softmax to bf16 and is an order of magnitude off where its fp32 twin is not.
TEST(Eager, RoundsItsLogits) {
  const Case c = generated("b1 hq4 hkv2 sq256 sk256 d64 bf16 causal seed=1");
  EXPECT_LT(error_of(c, run("eager_fp32", c), TensorName::kDq),
            error_of(c, run("eager", c), TensorName::kDq));
}

TEST(TorchPaths, GiveTheSameBitsTwice) {
  const Case c = generated("b1 hq4 hkv2 sq100 sk100 d64 bf16 causal seed=1");
  for (const char* path : {"flash_attention_2", "flash_attention_2_sink", "eager"}) {
    const Outputs first = run(path, c), again = run(path, c);
    EXPECT_TRUE(bitwise_equal(first.dq, again.dq)) << path;
    EXPECT_TRUE(bitwise_equal(first.dk, again.dk)) << path;
  }
}

}  // namespace
}  // namespace sinkscope
