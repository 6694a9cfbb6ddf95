// SPDX-License-Identifier: Apache-2.0
// How far two truths of one case are apart, per head, and the cases on which they must agree.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "src/inputs/case.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {

inline constexpr double kValueLimit = 1e-12;  // relative L2 per head
inline constexpr double kSigmaLimit = 1e-4;   // relative L2 per head, and of any element on its own

// Every feature, in several strips where it matters.
inline const std::vector<std::string>& truth_lines() {
  static const std::vector<std::string> kLines = {
      "b2 hq4 hkv2 sq300 sk300 d64 bf16 causal seed=1",
      "b1 hq2 hkv2 sq2500 sk2500 d64 bf16 causal seed=2",
      "b1 hq16 hkv2 sq700 sk700 d64 fp16 causal dlse seed=3",
      "b1 hq32 hkv1 sq200 sk333 d64 bf16 causal seed=4",
      "b1 hq4 hkv4 sq100 sk250 d128 bf16 full dlse seed=5",
      "b1 hq8 hkv2 sq400 sk200 d64 bf16 causal dlse seed=6",
      "b1 hq8 hkv2 sq400 sk200 d64 bf16 causal dlse sink=none seed=7",
      "b1 hq16 hkv2 sq900 sk900 d64 bf16 causal w128 seed=8",
      "b1 hq16 hkv2 sq5000 sk5100 d64 bf16 causal w100 dlse seed=34",
      "b2 hq16 hkv2 sq500 sk701 d32 fp16 causal w37 dlse seed=9",
      "b1 hq4 hkv2 sq300 sk200 d64 bf16 causal w1 seed=10",
      "b1 hq8 hkv2 docs=100,0,37,375,1 d64 bf16 causal dlse seed=11",
      "b1 hq8 hkv2 docs=100,0,37,0,20 docs_k=60,30,37,0,90 d64 fp16 causal w20 dlse seed=12",
      "b1 hq4 hkv2 docs=50,70,0 docs_k=64,0,30 d64 bf16 full dlse seed=13",
      "b1 hq16 hkv1 sq400 sk100 d64 fp16 causal dlse seed=33",
      "b1 hq4 hkv2 sq300 sk300 d64 bf16 causal sink=none seed=14",
      "b1 hq4 hkv2 sq300 sk300 d64 bf16 causal sink=-inf seed=15",
      "b1 hq4 hkv2 sq300 sk300 d64 bf16 causal dlse sink=inf seed=16",
      "b1 hq4 hkv2 sq300 sk300 d64 bf16 causal dlse sink=300 seed=17",
      "b1 hq14 hkv2 sq300 sk300 d64 fp32 causal dlse sink=extreme seed=18",
      "b1 hq4 hkv2 sq300 sk300 d64 bf16 causal scale=-0.2 sink_dtype=bf16 seed=19",
      "b1 hq4 hkv2 sq300 sk300 d64 fp16 causal scale=0 dlse seed=20",
      "b1 hq16 hkv2 sq500 sk500 d64 fp32 causal w100 dlse seed=21",
      "b1 hq4 hkv1 sq200 sk300 d128 fp32 full seed=22",
      "b1 hq4 hkv1 sq300 sk300 d64 fp32 causal scale=-3 fill=loud seed=23",
      "b1 hq8 hkv2 sq600 sk600 d64 bf16 causal dlse fill=loud seed=24",
      "b1 hq8 hkv2 sq600 sk600 d64 fp16 causal fill=needle seed=25",
      "b1 hq8 hkv2 sq600 sk600 d64 bf16 causal dlse fill=needle seed=26",
      "b1 hq8 hkv2 sq600 sk600 d64 bf16 causal dlse fill=cancel seed=27",
      "b1 hq8 hkv2 sq600 sk600 d64 bf16 causal dlse fill=ties seed=28",
      "b1 hq8 hkv2 sq600 sk600 d64 bf16 causal dlse fill=integers seed=29",
      "b1 hq1 hkv1 sq1 sk1 d1 bf16 causal dlse seed=30",
      "b1 hq2 hkv1 sq9001 sk9001 d64 bf16 causal dlse seed=31",
      "b1 hq2 hkv1 sq40 sk9001 d64 fp32 full dlse seed=32",
  };
  return kLines;
}

struct Disagreement {
  double values = 0;  // largest relative L2 of a head, over out, LSE, Delta, dq, dk, dv, dsinks, p, entropy
  std::string farthest;      // "dq of head 3"
  double sigma = 0;          // largest relative L2 of a head's sigma
  double sigma_element = 0;  // largest relative error of one sigma
  bool same_infinities = true;
};

// Compares heads of `size` elements of two truths. The error of a head is relative to its L2 norm in `ref`, or to
// `floors[head]` where that is larger: a sum that cancels is exact to its terms, not to what is left of them.
class TruthDistance {
 public:
  void values(const std::string& name, const std::vector<double>& got, const std::vector<double>& ref,
              std::size_t heads, const std::vector<double>& floors = {}) {
    for (std::size_t head = 0; head < heads; ++head) {
      const double error = of_head(got, ref, heads, head, floors.empty() ? 0 : floors[head]);
      if (error <= result.values) continue;
      result.values = error;
      result.farthest = name + " of head " + std::to_string(head);
    }
    if (got.size() != ref.size()) result.values = std::numeric_limits<double>::infinity();
  }

  void sigma(const std::vector<double>& got, const std::vector<double>& ref, std::size_t heads) {
    for (std::size_t head = 0; head < heads; ++head)
      result.sigma = std::max(result.sigma, of_head(got, ref, heads, head, 0));
    for (std::size_t i = 0; i < std::min(got.size(), ref.size()); ++i) {
      if (got[i] != ref[i])
        result.sigma_element = std::max(result.sigma_element, std::fabs(got[i] - ref[i]) / std::fabs(ref[i]));
    }
    if (got.size() != ref.size()) result.sigma = std::numeric_limits<double>::infinity();
  }

  Disagreement result;

 private:
  double of_head(const std::vector<double>& got, const std::vector<double>& ref, std::size_t heads,
                 std::size_t head, double floor) {
    const std::size_t size = std::min(got.size(), ref.size()) / heads;
    double error2 = 0, norm2 = 0;
    for (std::size_t i = head * size; i < (head + 1) * size; ++i) {
      if (got[i] == ref[i] && std::isinf(ref[i])) continue;
      if (!std::isfinite(got[i]) || !std::isfinite(ref[i])) {
        result.same_infinities = false;
        continue;
      }
      error2 += (got[i] - ref[i]) * (got[i] - ref[i]);
      norm2 += ref[i] * ref[i];
    }
    return error2 == 0 ? 0 : std::sqrt(error2) / std::max(std::sqrt(norm2), floor);
  }
};

// M: per query head, the sum over batch and rows of |p (dLSE - Delta)|, whose terms dsinks is the sum of.
inline std::vector<double> sink_magnitudes(const Case& c, const Truth& truth) {
  const AttentionShape& s = c.problem.shape;
  std::vector<double> sums(static_cast<std::size_t>(s.hq), 0.0);
  for (std::size_t i = 0; i < truth.value.delta.size(); ++i) {
    const double dlse = c.dlse.given() ? c.dlse.at(static_cast<std::int64_t>(i)) : 0;
    const std::size_t head = i / static_cast<std::size_t>(s.sq) % static_cast<std::size_t>(s.hq);
    sums[head] += std::fabs(truth.p_sink[i] * (dlse - truth.value.delta[i]));
  }
  return sums;
}

inline Disagreement disagreement(const Case& c, const Truth& got, const Truth& ref) {
  const AttentionShape& s = c.problem.shape;
  const auto q_heads = static_cast<std::size_t>(s.b * s.hq), kv_heads = static_cast<std::size_t>(s.b * s.hkv);
  TruthDistance distance;
  distance.values("out", got.value.out, ref.value.out, q_heads);
  distance.values("lse", got.value.lse, ref.value.lse, q_heads);
  distance.values("p", got.p_sink, ref.p_sink, q_heads);
  // The entropy is what is left of the LSE and the mean logit.
  std::vector<double> lse_norms(q_heads, 0.0);
  for (std::size_t i = 0; i < ref.value.lse.size(); ++i) {
    if (std::isfinite(ref.value.lse[i]))
      lse_norms[i / static_cast<std::size_t>(s.sq)] += ref.value.lse[i] * ref.value.lse[i];
  }
  for (double& norm : lse_norms) norm = std::sqrt(norm);
  distance.values("entropy", got.entropy, ref.entropy, q_heads, lse_norms);
  if (c.dout.given()) {
    distance.values("Delta", got.value.delta, ref.value.delta, q_heads);
    distance.values("dq", got.value.dq, ref.value.dq, q_heads);
    distance.values("dk", got.value.dk, ref.value.dk, kv_heads);
    distance.values("dv", got.value.dv, ref.value.dv, kv_heads);
    distance.values("dsinks", got.value.dsinks, ref.value.dsinks, static_cast<std::size_t>(s.hq),
                    sink_magnitudes(c, ref));
  }
  using Member = std::vector<double> reference::Tensors::*;
  for (const auto& [member, heads] : {std::pair<Member, std::size_t>{&reference::Tensors::out, q_heads},
                                      {&reference::Tensors::lse, q_heads},
                                      {&reference::Tensors::delta, q_heads},
                                      {&reference::Tensors::dq, q_heads},
                                      {&reference::Tensors::dk, kv_heads},
                                      {&reference::Tensors::dv, kv_heads},
                                      {&reference::Tensors::dsinks, static_cast<std::size_t>(s.hq)}}) {
    distance.sigma(got.sigma.*member, ref.sigma.*member, heads);
  }
  return distance.result;
}

// Prints how far a truth is from the Eigen truth of its problem line, and expects it within the limits.
inline void expect_agreement(const std::string& line, const Case& c, const Truth& got) {
  const Disagreement d = disagreement(c, got, compute_truth(c));
  std::printf("%-80s values %.1e (%s), sigma %.1e, one sigma %.1e\n", line.c_str(), d.values,
              d.farthest.c_str(), d.sigma, d.sigma_element);
  EXPECT_TRUE(d.same_infinities);
  EXPECT_LE(d.values, kValueLimit) << d.farthest;
  EXPECT_LE(d.sigma, kSigmaLimit);
  EXPECT_LE(d.sigma_element, kSigmaLimit);
}

}  // namespace sinkscope
