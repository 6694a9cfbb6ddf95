// SPDX-License-Identifier: Apache-2.0
// Which roundings make a right path's error: of the kernel on a real capture, and of paths that round in exactly one
// place, made by plain loops.
#include "src/explain/stages.hpp"

#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "fmt/format.h"
#include "gtest/gtest.h"

#include "src/capture/capture.hpp"
#include "src/compare/compare.hpp"
#include "src/explain/narrow.hpp"

namespace sinkscope {
namespace {

PathResult explained(const Case& c, const std::string& path) {
  CompareOptions options;
  options.paths = {path};
  options.repeat = 1;
  options.explain = true;
  return compare_case(c, read_gate("reports/gates/default.toml"), options).paths.at(0);
}

Case made(const std::string& line) {
  return make_case(parse_problem(line), "test", 0);
}

double share_of(const HeadStages& head, std::string_view stage) {
  double share = 0;
  for (const StageShare& one : head.stages) share += one.stage == stage ? one.share : 0;
  return share;
}

std::string text_of(const Explanation& explanation) {
  std::string all;
  for (const Finding& f : explanation.findings)
    all += fmt::format("{} {:.3f} [{}]\n", f.cause, f.share, scope_text(f));
  for (const HeadStages& head : explanation.stages) {
    all += fmt::format("{} {} {}:", text(head.tensor), head.batch, head.head);
    for (const StageShare& one : head.stages) all += fmt::format(" {} {:.4f}", one.stage, one.share);
    all += fmt::format(" left {:.4f} {:.4f} bias {:.2e}\n", head.remainder, head.left, head.bias);
  }
  return all;
}

void expect_sums_to_one(const Explanation& explanation) {
  for (const HeadStages& head : explanation.stages) {
    double sum = head.remainder;
    for (const StageShare& one : head.stages) sum += one.share;
    EXPECT_NEAR(sum, 1, 1e-9) << text(head.tensor) << " " << head.head;
  }
}

bool has(const Explanation& explanation, const std::string& cause) {
  for (const Finding& f : explanation.findings) {
    if (f.cause == cause) return true;
  }
  return false;
}

TEST(Stages, OfTheKernelsDqMostIsDeltaFromTheRoundedOut) {
  const PathResult path = explained(made("capture=datasets/captures/calm_layer1.safetensors"), "sink_kernel");
  ASSERT_FALSE(path.explanation.stages.empty());
  EXPECT_EQ(path.explanation.findings.at(0).cause, kNoCause);
  EXPECT_TRUE(has(path.explanation, "rounding:delta"));
  expect_sums_to_one(path.explanation);
  double mean = 0;
  for (const HeadStages& head : path.explanation.stages) {
    EXPECT_LT(std::fabs(head.remainder), 0.15) << text_of(path.explanation);
    if (head.tensor != TensorName::kDq || head.head >= 6) continue;
    EXPECT_GT(share_of(head, "delta"), 0.7) << head.head;
    EXPECT_LT(share_of(head, "delta"), 0.95) << head.head;
    mean += share_of(head, "delta") / 6;
  }
  EXPECT_NEAR(mean, 0.82, 0.06);
}

TEST(Stages, WithTheResidualDeltaIsFreeOfIt) {
  const PathResult path =
      explained(made("capture=datasets/captures/calm_layer1.safetensors residual"), "sink_kernel");
  EXPECT_FALSE(has(path.explanation, "rounding:delta")) << text_of(path.explanation);
  expect_sums_to_one(path.explanation);
  std::size_t gradients = 0;
  for (const HeadStages& head : path.explanation.stages) {
    EXPECT_LT(std::fabs(share_of(head, "delta")), 0.05);
    if (head.tensor != TensorName::kDq) continue;
    ++gradients;
    EXPECT_LT(head.left, 0.05) << text_of(path.explanation);
  }
  EXPECT_EQ(gradients, 8U);
}

// What a path does that rounds where it is told to, in plain loops over one batch entry.
struct Plan {
  Narrow s = Narrow::kNone, p = Narrow::kNone, softmax = Narrow::kNone, dp = Narrow::kNone,
         ds = Narrow::kNone;
  Narrow operands = Narrow::kNone, sums = Narrow::kNone, key_sums = Narrow::kNone, backward_p = Narrow::kNone,
         delta = Narrow::kNone;
  bool exact_sum = false;       // the row's sum is of P before it is rounded
  bool delta_from_out = false;  // of the rounded out
};

Outputs played(const Case& c, const Plan& plan) {
  const AttentionShape& s = c.problem.shape;
  const Narrow o = plan.operands;
  const double scale = static_cast<float>(s.scale);
  std::vector<double> out, lse, dq, dk(static_cast<std::size_t>(s.hkv * s.sk * s.d)), dv(dk.size());
  std::vector<double> dsinks(static_cast<std::size_t>(s.hq));
  const Narrow format = narrow_of(s.dtype);
  for (std::int64_t h = 0; h < s.hq; ++h) {
    const std::int64_t kv = h / s.group();
    const auto at = [&](const Tensor& t, std::int64_t head, std::int64_t rows, std::int64_t i,
                        std::int64_t x) { return narrowed(t.at((head * rows + i) * s.d + x), o); };
    const auto key = [&](std::int64_t j, std::int64_t x) {
      return static_cast<std::size_t>((kv * s.sk + j) * s.d + x);
    };
    for (std::int64_t i = 0; i < s.sq; ++i) {
      const std::int64_t seen = i + s.sk - s.sq + 1;
      std::vector<double> logits, dp, p, weights;
      double most = -INFINITY;
      for (std::int64_t j = 0; j < seen; ++j) {
        double logit = 0, product = 0;
        for (std::int64_t x = 0; x < s.d; ++x) {
          logit += at(c.q, h, s.sq, i, x) * at(c.k, kv, s.sk, j, x);
          product += at(c.dout, h, s.sq, i, x) * at(c.v, kv, s.sk, j, x);
        }
        logits.push_back(narrowed(scale * logit, plan.s));
        dp.push_back(product);
        most = std::max(most, logits.back());
      }
      double exact = std::exp(c.sinks.at(h) - most), rounded = exact;
      for (const double logit : logits) exact += std::exp(logit - most);
      const double of_row = most + std::log(exact);
      for (const double logit : logits) {
        p.push_back(narrowed(std::exp(logit - of_row), plan.softmax));
        weights.push_back(plan.softmax == Narrow::kNone ? narrowed(std::exp(logit - most), plan.p)
                                                        : p.back());
        rounded += weights.back();
      }
      const double divisor = plan.softmax != Narrow::kNone ? 1 : plan.exact_sum ? exact : rounded;
      double delta = 0;
      for (std::int64_t x = 0; x < s.d; ++x) {
        double sum = 0;
        for (std::int64_t j = 0; j < seen; ++j)
          sum = narrowed(sum + weights[static_cast<std::size_t>(j)] * at(c.v, kv, s.sk, j, x), plan.sums);
        out.push_back(sum / divisor);
        const double stored = plan.delta_from_out ? narrowed(out.back(), format) : out.back();
        delta += at(c.dout, h, s.sq, i, x) * stored;
      }
      if (!plan.delta_from_out) {
        delta = 0;
        for (std::size_t j = 0; j < p.size(); ++j) delta += p[j] * dp[j];
      }
      delta = narrowed(delta, plan.delta);
      lse.push_back(of_row);
      dsinks[static_cast<std::size_t>(h)] -= std::exp(c.sinks.at(h) - of_row) * delta;
      std::vector<double> row(static_cast<std::size_t>(s.d));
      for (std::int64_t j = 0; j < seen; ++j) {
        const auto n = static_cast<std::size_t>(j);
        const double ds = narrowed(p[n] * (narrowed(dp[n], plan.dp) - delta), plan.ds);
        for (std::int64_t x = 0; x < s.d; ++x) {
          row[static_cast<std::size_t>(x)] =
              narrowed(row[static_cast<std::size_t>(x)] + ds * at(c.k, kv, s.sk, j, x), plan.sums);
          double& of_dk = dk[key(j, x)];
          double& of_dv = dv[key(j, x)];
          of_dk = narrowed(of_dk + ds * at(c.q, h, s.sq, i, x), plan.key_sums);
          of_dv =
              narrowed(of_dv + narrowed(p[n], plan.backward_p) * at(c.dout, h, s.sq, i, x), plan.key_sums);
        }
      }
      for (const double x : row) dq.push_back(scale * x);
    }
  }
  for (double& x : dk) x *= scale;
  Outputs outputs;
  outputs.out = Tensor::rounded(s.dtype, {1, s.hq, s.sq, s.d}, out);
  outputs.lse = Tensor::rounded(DType::kFp32, {1, s.hq, s.sq}, lse);
  outputs.dq = Tensor::rounded(s.dtype, {1, s.hq, s.sq, s.d}, dq);
  outputs.dk = Tensor::rounded(s.dtype, {1, s.hkv, s.sk, s.d}, dk);
  outputs.dv = Tensor::rounded(s.dtype, {1, s.hkv, s.sk, s.d}, dv);
  outputs.dsinks = Tensor::rounded(DType::kFp32, {s.hq}, dsinks);
  return outputs;
}

struct Planted {
  const char* stage;
  std::set<TensorName> tensors;  // in which it makes a tenth of the error at least
  Plan plan;
};

// Every stage that is planted makes its share where it reaches, nothing is said to be made by a stage that is not, and
// next to nothing is left.
void expect_found(const std::string& line, const Planted& planted) {
  Case c = made(line);
  c.recorded["x"] = played(c, planted.plan);
  const Explanation explanation = explained(c, "recorded.x").explanation;
  SCOPED_TRACE(planted.stage);
  ASSERT_FALSE(explanation.stages.empty()) << text_of(explanation);
  expect_sums_to_one(explanation);
  for (const TensorStages& of : stages_by_tensor(explanation.stages)) {
    double share = 0;
    for (const StageShare& one : of.stages) {
      if (one.stage == planted.stage) share = one.share;
      const bool expected = one.stage == planted.stage || one.stage == "output";
      EXPECT_TRUE(expected || std::fabs(one.share) < 0.03) << text(of.tensor) << " " << one.stage << "\n"
                                                           << text_of(explanation);
    }
    if (of.tensor == TensorName::kDsinks) continue;
    EXPECT_EQ(share > 0.1, planted.tensors.contains(of.tensor)) << text(of.tensor) << "\n"
                                                                << text_of(explanation);
    EXPECT_LT(std::fabs(of.remainder), 0.1) << text(of.tensor) << "\n" << text_of(explanation);
  }
  EXPECT_TRUE(has(explanation, fmt::format("rounding:{}", planted.stage))) << text_of(explanation);
  for (const Finding& finding : explanation.findings) {
    const bool is_rounding = finding.cause.starts_with("rounding:");
    EXPECT_TRUE(is_rounding || finding.cause == kNoCause) << text_of(explanation);
  }
}

TEST(Stages, FindsTheOneThatIsPlanted) {
  using enum TensorName;
  constexpr Narrow b = Narrow::kBf16;
  const std::string line = "b1 hq4 hkv2 sq96 sk120 d32 bf16 causal seed=3";
  expect_found(line, {"output", {kOut, kDq, kDk, kDv}, {}});
  expect_found(line, {"s", {kOut, kLse, kDq, kDk, kDv}, {.s = b}});
  expect_found(line, {"p", {kOut}, {.p = b}});
  expect_found(line, {"p", {kDv}, {.backward_p = b}});
  expect_found(line, {"softmax", {kOut, kDq, kDk, kDv}, {.softmax = b}});
  expect_found(line, {"ds", {kDq, kDk}, {.ds = b}});
  expect_found(line, {"dp", {kDq, kDk}, {.dp = b}});
  expect_found(line, {"accumulate", {kOut, kDq}, {.sums = b}});
  expect_found(line, {"accumulate", {kDk, kDv}, {.key_sums = b}});
  expect_found("b1 hq4 hkv2 sq96 sk96 d32 fp16 causal seed=4", {"ds", {kDq, kDk}, {.ds = Narrow::kFp16}});
}

TEST(Stages, DeltaFromTheRoundedOutIsFoundWhereItIsPlanted) {
  using enum TensorName;
  // Large out, small dP spread: Delta's error is what counts.
  expect_found("b1 hq4 hkv2 sq96 sk120 d32 bf16 causal fill=ties seed=5",
               {"delta", {kDq, kDk}, {.delta_from_out = true}});
}

TEST(Stages, ProductsInTf32AndBf16AreNoMistake) {
  using enum TensorName;
  const std::string line = "b1 hq4 hkv2 sq96 sk96 d32 fp32 causal seed=6";
  for (const auto& [stage, format] : {std::pair{"tf32", Narrow::kTf32}, std::pair{"tf32", Narrow::kTf32Cut},
                                      std::pair{"bf16", Narrow::kBf16}}) {
    Plan plan;
    plan.operands = plan.p = plan.ds = plan.backward_p = format;
    expect_found(line, {stage, {kOut, kLse, kDq, kDk, kDv}, plan});
  }
}

std::map<std::string, double> sources_of(const HeadStages& head) {
  std::map<std::string, double> sources;
  for (const BiasSource& source : head.bias_sources) sources[source.source] = source.bias;
  return sources;
}

// Logits so close to the maximum that P rounds up to 1: the row's sum of P before that is too small for it.
TEST(Stages, ABiasComesFromPThatIsRoundedOnOneSideOfTheDivisionAlone) {
  Case c = made("b1 hq2 hkv1 sq256 sk256 d32 bf16 causal fill=ties scale=1e-4 sink=-3 seed=7");
  for (const bool exact_sum : {true, false}) {
    c.recorded["x"] = played(c, {.p = Narrow::kBf16, .exact_sum = exact_sum});
    const Explanation explanation = explained(c, "recorded.x").explanation;
    std::size_t heads = 0;
    for (const HeadStages& head : explanation.stages) {
      if (head.tensor != TensorName::kOut) continue;
      ++heads;
      const std::map<std::string, double> sources = sources_of(head);
      EXPECT_EQ(sources.size(), exact_sum ? 2U : 0U) << text_of(explanation);
      for (const auto& [source, bias] : sources) {
        EXPECT_GT(head.bias, 1e-4) << source;
        EXPECT_NEAR(bias / head.bias, 1, 0.3) << source;
      }
    }
    EXPECT_EQ(heads, 2U) << text_of(explanation);
  }
}

TEST(Stages, TheKernelInFp32HasNoStageOf16Bits) {
  const Explanation explanation =
      explained(made("b1 hq4 hkv2 sq200 sk200 d64 fp32 causal w40 seed=2"), "sink_kernel").explanation;
  ASSERT_FALSE(explanation.stages.empty());
  expect_sums_to_one(explanation);
  for (const HeadStages& head : explanation.stages) {
    for (const StageShare& one : head.stages)
      EXPECT_TRUE(std::set<std::string>({"output", "lse", "delta"}).contains(one.stage)) << one.stage;
  }
}

}  // namespace
}  // namespace sinkscope
