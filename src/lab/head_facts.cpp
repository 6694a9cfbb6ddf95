// SPDX-License-Identifier: Apache-2.0
#include "src/lab/head_facts.hpp"

#include <ATen/core/grad_mode.h>
#include <algorithm>

#include "src/lab/attention.hpp"

namespace sinkscope::lab {
namespace {

constexpr std::int64_t kObservedRows = 64;
constexpr double kHidden =
    -1e30;  // the score of a hidden key: its probability is 0, and so is its part of the entropy

// The last row is one of them.
at::Tensor spread_rows(std::int64_t rows, at::Device device) {
  const std::int64_t count = std::min(rows, kObservedRows);
  const at::Tensor counted = at::arange(1, count + 1, at::TensorOptions().dtype(at::kLong).device(device));
  return at::floor_divide(counted * rows, count) - 1;
}

}  // namespace

at::Tensor observed_heads(const at::Tensor& q, const at::Tensor& k, const at::Tensor& sinks,
                          const Geometry& geometry, DType format) {
  const at::NoGradGuard guard;
  const std::int64_t b = q.size(0), hkv = k.size(1), group = q.size(1) / hkv, sk = k.size(2), d = q.size(3);
  const at::Tensor which = spread_rows(q.size(2), q.device());
  const at::Tensor rows = rounded_to(q.index_select(2, which), format).to(at::kFloat);
  const at::Tensor keys = rounded_to(k, format).to(at::kFloat);
  at::Tensor scores = at::matmul(rows.reshape({b, hkv, -1, d}), keys.transpose(-1, -2));
  scores = scores.view({b, hkv, group, -1, sk}).mul_(scale_of(q, geometry));
  scores.masked_fill_(hidden_keys(which, sk, geometry), kHidden);
  const at::Tensor sink = sinks.view({1, hkv, group, 1, 1});
  const at::Tensor lse = at::logaddexp(at::logsumexp(scores, {-1}, true), sink);
  const at::Tensor p = (scores - lse).exp_();
  const at::Tensor mass = at::exp(sink - lse);
  const at::Tensor entropy =
      lse - (p * scores).sum(-1, true) - mass * sink;  // -sum p log p, log p = score - lse
  const auto mean = [](const at::Tensor& t) { return t.mean({0, 3, 4}).flatten(); };
  return at::stack({mean(mass), mean(1 / (1 - mass)), mean(entropy), at::amax(scores, {0, 3, 4}).flatten()});
}

std::vector<HeadFacts> head_facts(const std::vector<at::Tensor>& layers) {
  std::vector<HeadFacts> facts;
  if (layers.empty()) return facts;
  const at::Tensor all = at::cat(layers, 1).to(at::kCPU, at::kDouble).t().contiguous();
  const double* next = all.const_data_ptr<double>();
  for (std::int64_t i = 0; i < all.size(0); ++i, next += 4)
    facts.push_back({next[0], next[1], next[2], next[3]});
  return facts;
}

}  // namespace sinkscope::lab
