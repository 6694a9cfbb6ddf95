// SPDX-License-Identifier: Apache-2.0
#include "src/explain/softcap.hpp"

#include <algorithm>
#include <cmath>

namespace sinkscope {
namespace {

using Vector = std::vector<double>;

class SoftcapHead {
 public:
  SoftcapHead(const reference::Problem& problem, const reference::Inputs& inputs,
              const reference::Rounding& rounding, double cap)
      : p_(problem),
        in_(inputs),
        cap_(cap),
        d_(static_cast<std::size_t>(problem.d)),
        rho2_(std::pow(0x1p-24 / rounding.unit_roundoff, 2)),
        eta2_(std::pow(rounding.underflow / rounding.unit_roundoff, 2)),
        backward_(!inputs.dout.empty()) {}

  Truth run() {
    const auto rows = static_cast<std::size_t>(p_.sq), keys = static_cast<std::size_t>(p_.sk);
    for (reference::Tensors* t : {&r_.value, &r_.sigma}) {
      t->out.resize(rows * d_);
      t->lse.resize(rows);
      t->delta.resize(rows);
      t->dq.resize(rows * d_);
      t->dk.resize(keys * d_);
      t->dv.resize(keys * d_);
    }
    r_.p_sink.resize(rows);
    for (std::size_t row = 0; row < rows; ++row) run_row(row);
    const auto add_rounding = [](Vector& sigma2, const Vector& value) {
      for (std::size_t i = 0; i < value.size(); ++i) sigma2[i] = std::sqrt(sigma2[i] + value[i] * value[i]);
    };
    add_rounding(r_.sigma.dk, r_.value.dk);
    add_rounding(r_.sigma.dv, r_.value.dv);
    return std::move(r_);
  }

 private:
  double dot(std::span<const double> a, std::size_t row_a, std::span<const double> b,
             std::size_t row_b) const {
    double sum = 0;
    for (std::size_t x = 0; x < d_; ++x) sum += a[row_a * d_ + x] * b[row_b * d_ + x];
    return sum;
  }

  void run_row(std::size_t row) {
    const std::int64_t own = static_cast<std::int64_t>(row) + p_.sk - p_.sq;
    const std::int64_t end = p_.causal ? std::clamp<std::int64_t>(own + 1, 0, p_.sk) : p_.sk;
    first_ =
        static_cast<std::size_t>(p_.window > 0 ? std::clamp<std::int64_t>(own + 1 - p_.window, 0, end) : 0);
    s_.assign(static_cast<std::size_t>(end) - first_, 0);
    const double sink = in_.sinks.empty() ? -INFINITY : in_.sinks[0];
    double most = sink;
    for (std::size_t j = 0; j < s_.size(); ++j) {
      s_[j] = cap_ * std::tanh(p_.scale * dot(in_.q, row, in_.k, first_ + j) / cap_);
      most = std::max(most, s_[j]);
    }
    double total = std::isinf(most) ? 0 : std::exp(sink - most);
    for (const double s : s_) total += std::exp(s - most);
    const double lse = r_.value.lse[row] = total > 0 ? most + std::log(total) : most;
    r_.p_sink[row] = std::isinf(sink) ? (sink > 0 ? 1 : 0) : std::exp(sink - lse);
    weights_.assign(s_.size(), 0);
    double spread = 0;
    for (std::size_t j = 0; j < s_.size(); ++j) {
      weights_[j] = std::isinf(lse) ? 0 : std::exp(s_[j] - lse);
      spread += weights_[j] * weights_[j] * s_[j] * s_[j];
      for (std::size_t x = 0; x < d_; ++x) {
        const double term = weights_[j] * in_.v[(first_ + j) * d_ + x];
        r_.value.out[row * d_ + x] += term;
        r_.sigma.out[row * d_ + x] += term * term;
      }
    }
    r_.sigma.lse[row] =
        std::isinf(lse) ? 0 : std::sqrt(lse * lse + 1 + static_cast<double>(s_.size()) / 16 + spread);
    const double shared = rho2_ * r_.sigma.lse[row] * r_.sigma.lse[row];
    for (std::size_t i = row * d_; i < (row + 1) * d_; ++i)
      r_.sigma.out[i] = std::sqrt(r_.sigma.out[i] + r_.value.out[i] * r_.value.out[i] * (1 + shared) + eta2_);
    if (backward_) add_gradients(row);
  }

  void add_gradients(std::size_t row) {
    double delta = 0, sigma2_delta = 0;
    for (std::size_t x = 0; x < d_; ++x) {
      const double term = in_.dout[row * d_ + x] * r_.value.out[row * d_ + x];
      delta += term;
      sigma2_delta += term * term;
    }
    Vector dp(s_.size());
    for (std::size_t j = 0; j < dp.size(); ++j) {
      dp[j] = dot(in_.dout, row, in_.v, first_ + j);
      sigma2_delta += weights_[j] * weights_[j] * dp[j] * dp[j];
    }
    r_.value.delta[row] = delta;
    r_.sigma.delta[row] = std::sqrt(sigma2_delta);
    const double dlse = in_.dlse.empty() ? 0 : in_.dlse[row];
    Vector shared(d_);  // what Delta's rounding moves dq by
    for (std::size_t j = 0; j < dp.size(); ++j) {
      const double slope = p_.scale * (1 - std::pow(s_[j] / cap_, 2));  // of the logit by q . k
      const double ds = slope * weights_[j] * (dp[j] - delta + dlse), by_delta = slope * weights_[j];
      for (std::size_t x = 0; x < d_; ++x) {
        const std::size_t key = (first_ + j) * d_ + x, at = row * d_ + x;
        r_.value.dq[at] += ds * in_.k[key];
        r_.sigma.dq[at] += std::pow(ds * in_.k[key], 2);
        shared[x] += by_delta * in_.k[key];
        r_.value.dk[key] += ds * in_.q[at];
        r_.sigma.dk[key] += (ds * ds + by_delta * by_delta * sigma2_delta) * in_.q[at] * in_.q[at];
        r_.value.dv[key] += weights_[j] * in_.dout[at];
        r_.sigma.dv[key] += std::pow(weights_[j] * in_.dout[at], 2);
      }
    }
    for (std::size_t x = 0; x < d_; ++x) {
      double& sigma = r_.sigma.dq[row * d_ + x];
      const double dq = r_.value.dq[row * d_ + x];
      sigma = std::sqrt(sigma + sigma2_delta * shared[x] * shared[x] + dq * dq + eta2_);
    }
  }

  const reference::Problem& p_;
  const reference::Inputs& in_;
  double cap_;
  std::size_t d_;
  double rho2_;
  double eta2_;  // of what underflows, in units of u
  bool backward_;
  std::size_t first_ = 0;  // the first key that the row sees
  Vector s_, weights_;     // of the row: logits and probabilities
  Truth r_;
};

}  // namespace

Truth evaluate_softcap(const reference::Problem& problem, const reference::Inputs& inputs,
                       const reference::Rounding& rounding, double cap) {
  return SoftcapHead(problem, inputs, rounding, cap).run();
}

}  // namespace sinkscope
