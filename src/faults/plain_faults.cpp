// SPDX-License-Identifier: Apache-2.0
// What no healthy path can be made to compute, a tanh that bounds the logits and a window that reaches forward: plain
// loops, rounded once.
#include <cmath>

#include "src/faults/visible_keys.hpp"
#include "src/faults/wrap.hpp"

namespace sinkscope {
namespace {

constexpr double kCap = 2;

std::optional<std::string> visible(const Case&) {
  return std::nullopt;
}

std::optional<std::string> needs_window(const Case& c) {
  if (c.problem.shape.window > 1) return std::nullopt;
  return "the mistake needs a window of more than one key";
}

// What is computed: logits, their derivative by what is bounded, and who sees whom.
struct PlainFunction {
  double (*logit)(double scaled);
  double (*slope)(double logit);
  VisibleKeys (*keys)(const AttentionShape& shape, std::int64_t row);
};

constexpr PlainFunction kSoftcap = {[](double scaled) { return kCap * std::tanh(scaled / kCap); },
                                    [](double logit) { return 1 - logit / kCap * (logit / kCap); },
                                    visible_keys};
constexpr PlainFunction kSymmetricWindow = {[](double scaled) { return scaled; }, [](double) { return 1.0; },
                                            keys_of_symmetric_window};

// Sums over heads that share keys, over rows and over the batch, before they are rounded.
struct Sums {
  std::vector<double> out, lse, dq, dk, dv, dsinks;
};

void add_row(const PlainFunction& f, const Case& c, std::int64_t batch, std::int64_t head, std::int64_t i,
             Sums& sums) {
  const AttentionShape& s = c.problem.shape;
  const std::int64_t row = (batch * s.hq + head) * s.sq + i, kv = batch * s.hkv + head / s.group();
  const VisibleKeys keys = f.keys(s, i);
  const auto dot = [&](const Tensor& a, std::int64_t row_a, const Tensor& b, std::int64_t row_b) {
    double sum = 0;
    for (std::int64_t x = 0; x < s.d; ++x) sum += a.at(row_a * s.d + x) * b.at(row_b * s.d + x);
    return sum;
  };
  const double sink = c.sinks.given() ? c.sinks.at(head) : -INFINITY;
  std::vector<double> p, logits, dp;
  double total = std::exp(sink), delta = 0;
  for (std::int64_t j = keys.first; j < keys.end; ++j) {
    logits.push_back(f.logit(s.scale * dot(c.q, row, c.k, kv * s.sk + j)));
    p.push_back(std::exp(logits.back()));
    total += p.back();
  }
  sums.lse[static_cast<std::size_t>(row)] = std::log(total);
  for (std::size_t j = 0; j < p.size(); ++j) {
    p[j] /= total;
    const std::int64_t key = kv * s.sk + keys.first + static_cast<std::int64_t>(j);
    for (std::int64_t x = 0; x < s.d; ++x)
      sums.out[static_cast<std::size_t>(row * s.d + x)] += p[j] * c.v.at(key * s.d + x);
    if (!c.dout.given()) continue;
    dp.push_back(dot(c.dout, row, c.v, key));
    delta += p[j] * dp.back();
  }
  if (!c.dout.given()) return;
  const double constant = (c.dlse.given() ? c.dlse.at(row) : 0) - delta;
  if (c.sinks.given()) sums.dsinks[static_cast<std::size_t>(head)] += std::exp(sink) / total * constant;
  for (std::size_t j = 0; j < p.size(); ++j) {
    const std::int64_t key = kv * s.sk + keys.first + static_cast<std::int64_t>(j);
    const double ds = s.scale * p[j] * (dp[j] + constant) * f.slope(logits[j]);
    for (std::int64_t x = 0; x < s.d; ++x) {
      sums.dq[static_cast<std::size_t>(row * s.d + x)] += ds * c.k.at(key * s.d + x);
      sums.dk[static_cast<std::size_t>(key * s.d + x)] += ds * c.q.at(row * s.d + x);
      sums.dv[static_cast<std::size_t>(key * s.d + x)] += p[j] * c.dout.at(row * s.d + x);
    }
  }
}

PathRun run_plainly(const PlainFunction& f, const Case& c) {
  const AttentionShape& s = c.problem.shape;
  const auto rows = static_cast<std::size_t>(s.b * s.hq * s.sq),
             keys = static_cast<std::size_t>(s.b * s.hkv * s.sk);
  const auto d = static_cast<std::size_t>(s.d);
  Sums sums{std::vector<double>(rows * d), std::vector<double>(rows),
            std::vector<double>(rows * d), std::vector<double>(keys * d),
            std::vector<double>(keys * d), std::vector<double>(static_cast<std::size_t>(s.hq))};
  for (std::int64_t i = 0; i < s.b * s.hq * s.sq; ++i)
    add_row(f, c, i / (s.hq * s.sq), i / s.sq % s.hq, i % s.sq, sums);
  PathRun run;
  run.backend = "plain loops";
  run.outputs.out = Tensor::rounded(s.dtype, {s.b, s.hq, s.sq, s.d}, sums.out);
  run.outputs.lse = Tensor::rounded(DType::kFp32, {s.b, s.hq, s.sq}, sums.lse);
  if (!c.dout.given()) return run;
  const Grads& grads = c.problem.grads;
  if (grads.q) run.outputs.dq = Tensor::rounded(s.dtype, {s.b, s.hq, s.sq, s.d}, sums.dq);
  if (grads.k) run.outputs.dk = Tensor::rounded(s.dtype, {s.b, s.hkv, s.sk, s.d}, sums.dk);
  if (grads.v) run.outputs.dv = Tensor::rounded(s.dtype, {s.b, s.hkv, s.sk, s.d}, sums.dv);
  if (grads.s && c.sinks.given()) run.outputs.dsinks = Tensor::rounded(DType::kFp32, {s.hq}, sums.dsinks);
  return run;
}

Path softcap(const Path& healthy) {
  return wrap(healthy, "softcap", visible,
              [](const Path&, const Case& c, const PathOptions&) { return run_plainly(kSoftcap, c); });
}

Path window_symmetric(const Path& healthy) {
  return wrap(healthy, "window_symmetric", needs_window, [](const Path&, const Case& c, const PathOptions&) {
    return run_plainly(kSymmetricWindow, c);
  });
}

}  // namespace

std::vector<Fault> plain_faults() {
  return {{"softcap", "the logits are bounded by 2 tanh(logit / 2)", softcap},
          {"window_symmetric", "the window reaches as far forward as back", window_symmetric}};
}

}  // namespace sinkscope
