// SPDX-License-Identifier: Apache-2.0
#include "src/torch/truth_strip.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace sinkscope::torch_paths {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// rho^2 tau^2 below this leaves half of it, relatively, in a sigma; it is then left out of Eq. 18's f.
constexpr double kLeastLogitRounding = 1e-4;
// e^2 beside P^2 in Eq. 15 is left out where the smallest P^2 of a strip is at least 1e12 times larger.
constexpr double kLeastUnderflow = 1e-12;
// Eq. 16's: a step of dQ in fixed point, and the keys whose sums leave a variance of one squared step.
constexpr double kFixedPoint = 0x1p-30;
constexpr double kKeysPerSquaredStep = 1536;
// Logits up to this need no pivot: exp of them, and its square, are far from fp64's limits.
constexpr double kMostPlainLogit = 100;
// Keys per product where a sum runs over a whole strip: enough parts to keep every multiprocessor busy.
constexpr std::int64_t kKeysPerProduct = 4096;

at::Tensor row_sum(const at::Tensor& x) {
  return x.sum(1, true);
}

// Sums of the squares of each row, [m, 1], in one pass.
at::Tensor row_square_sum(const at::Tensor& x) {
  return at::linalg_vector_norm(x, 2, at::IntArrayRef{1}, true).square_();
}

// strip [m, n] times x [n, c]: parts of the keys side by side, then their sum in order.
at::Tensor over_keys(const at::Tensor& strip, const at::Tensor& x) {
  const std::int64_t n = strip.size(1);
  const std::int64_t parts = n / kKeysPerProduct;
  if (parts < 2) return at::mm(strip, x);
  const std::int64_t main = parts * kKeysPerProduct;
  const at::Tensor left = strip.narrow(1, 0, main).unflatten(1, {parts, kKeysPerProduct}).transpose(0, 1);
  const at::Tensor right = x.narrow(0, 0, main).unflatten(0, {parts, kKeysPerProduct});
  at::Tensor sum = at::bmm(left, right).sum(0);
  if (main < n) sum.addmm_(strip.narrow(1, main, n - main), x.narrow(0, main, n - main));
  return sum;
}

// The buffers of a strip, by what is in them. The last three are made only where they are needed.
enum Buffer : std::size_t {
  kLogits,  // S, then P~ S, then P~^2
  kP,       // P~ = exp(S - the row's pivot)
  kDp,      // dP, then P~ dP, then dS and dS^2 over the row's factor
  kTau2,    // Eq. 18's tau^2, then f
  kPsi2,    // Eq. 18's psi^2
  kSpare,
};

class Strip {
 public:
  Strip(TruthDocument& document, const TruthRows& rows, StripBuffers& buffers)
      : doc_(document),
        settings_(document.settings),
        rows_(rows),
        buffers_(buffers),
        m_(rows.heads * rows.positions),
        d_(document.d) {
    const std::int64_t last = rows.first + rows.positions - 1;
    key_ = doc_.first_key(rows.first) / TruthDocument::kKeyPadding * TruthDocument::kKeyPadding;
    const std::int64_t end = doc_.end_key(last);
    n_ = end == 0 ? 0 : TruthDocument::padded(end) - key_;
    find_hidden(last);
    vk_ = doc_.vk.narrow(0, key_, n_);
    vk2_ = doc_.vk2.narrow(0, key_, n_);
    scaled_q_ = rows.q * settings_.scale;
    scaled_q2_ = scaled_q_.square();
    truncation2_ = settings_.fp32 ? 0 : sixteenth_of_d() * sixteenth_of_d() / 4;
    choose_terms();
  }

  StripResult run() {
    if (n_ > 0) forward_sums();
    forward_rows();
    if (rows_.dout.defined()) {
      result_.delta = row_sum(rows_.dout * result_.out);
      shift_ = rows_.dlse - result_.delta;
      most_ds2_ = (row_sum(rows_.dout.square()).sqrt_() * doc_.longest_value + shift_.abs()).square_();
      if (n_ > 0) backward_sums();
      sigma_delta();
      if (n_ > 0) gradients();
      backward_rows();
    }
    return std::move(result_);
  }

 private:
  double sixteenth_of_d() const { return static_cast<double>(d_) / 16; }
  at::Tensor v() const { return vk_.narrow(1, 0, d_); }
  at::Tensor k() const { return vk_.narrow(1, d_, d_); }
  at::Tensor v2() const { return vk2_.narrow(1, 0, d_); }
  at::Tensor k2() const { return vk2_.narrow(1, d_, d_); }
  at::Tensor buffer(Buffer which) { return buffers_.get(which, m_, n_); }
  at::Tensor of_keys(const at::Tensor& sums) const { return sums.narrow(0, key_, n_); }
  // [positions, x] repeated for every head.
  at::Tensor for_heads(const at::Tensor& x) const { return x.repeat({rows_.heads, 1}); }

  // Which steps can be left out here, and which terms of a sigma are too small to count, by bounds on the logits
  // and on the smallest P. NaN leaves out none.
  void choose_terms() {
    const at::Tensor bounds = at::stack({scaled_q2_.sum(1).max(), rows_.sinks.max()}).cpu();
    const double logit = std::sqrt(bounds[0].item<double>()) * doc_.longest_key;
    with_pivot_ = !(logit <= kMostPlainLogit);
    const double most_tau2 = logit * logit * (1 + truncation2_ + sixteenth_of_d());
    with_tau_ = settings_.fp32 || !(settings_.rho2 * most_tau2 <= kLeastLogitRounding);
    const double least_log_p =
        -2 * logit - std::log(static_cast<double>(n_ + 1)) - std::max(0.0, bounds[1].item<double>());
    with_underflow_ = !(settings_.eta2 * std::exp(-2 * least_log_p) <= kLeastUnderflow);
  }

  // Which columns some rows see and others do not: the first and last of the strip, where the window and the
  // diagonal pass, or all of them.
  void find_hidden(std::int64_t last) {
    const auto options = doc_.vk.options().dtype(at::kLong);
    const at::Tensor row = at::arange(rows_.first, last + 1, options);
    const std::int64_t offset = doc_.keys - doc_.rows + 1;
    end_ = settings_.causal ? (row + offset).clamp(0, doc_.keys) : at::full_like(row, doc_.keys);
    first_ =
        settings_.window > 0 ? (row + (offset - settings_.window)).clamp(0, doc_.keys) : at::zeros_like(row);
    if (n_ == 0) return;
    const std::int64_t left = doc_.first_key(last) - key_;
    const std::int64_t right = doc_.end_key(rows_.first) - key_;
    std::vector<std::pair<std::int64_t, std::int64_t>> spans = {{0, left}, {right, n_}};
    if (left >= right) spans = {{0, n_}};
    for (const auto& [from, to] : spans) {
      if (from >= to) continue;
      const at::Tensor key = at::arange(key_ + from, key_ + to, options);
      hidden_.push_back({from, to, (key >= end_.unsqueeze(1)).logical_or_(key < first_.unsqueeze(1))});
    }
  }

  void hide(const at::Tensor& strip, double value) const {
    const at::Tensor by_head = strip.view({rows_.heads, rows_.positions, n_});
    for (const Hidden& hidden : hidden_)
      by_head.narrow(2, hidden.from, hidden.to - hidden.from).masked_fill_(hidden.mask, value);
  }

  // Everything of the forward that is summed over keys (Eq. 2 to 6), P over the row's factor.
  void forward_sums() {
    at::Tensor s = buffer(kLogits), p = buffer(kP);
    at::mm_out(s, scaled_q_, k().t());
    hide(s, -kInfinity);
    if (with_pivot_) {
      pivot_ = s.amax(1, true);
      pivot_.masked_fill_(pivot_.eq(-kInfinity), 0);
      at::sub_out(p, s, pivot_);
      p.exp_();
    } else {
      pivot_ = at::zeros_like(rows_.sinks);
      at::exp_out(p, s);
    }
    hide(s, 0);
    total_ = row_sum(p);
    p_vk_ = over_keys(p, vk_);
    if (with_tau_) {
      at::Tensor tau2 = buffer(kTau2), spare = buffer(kSpare);
      at::mm_out(tau2, scaled_q2_ * sixteenth_of_d(), k2().t());
      tau2.addcmul_(s, s, 1 + truncation2_);
      at::mul_out(s, p, p);
      at::mul_out(spare, s, tau2);
      p2_tau2_ = row_sum(spare);
    } else {
      p2_tau2_ = row_square_sum(s.mul_(p)) * (1 + truncation2_);
      at::mul_out(s, p, p);
      const at::Tensor p2_vk2 = over_keys(s, vk2_);
      p2_v2_ = p2_vk2.narrow(1, 0, d_);
      p2_k2_ = p2_vk2.narrow(1, d_, d_);
      p2_tau2_ += row_sum(scaled_q2_ * p2_k2_) * sixteenth_of_d();
    }
  }

  // Eq. 3 to 6, 14 and 19.
  void forward_rows() {
    const at::Tensor& sinks = rows_.sinks;
    if (n_ == 0) {
      pivot_ = at::zeros_like(sinks);
      total_ = at::zeros_like(sinks);
      p2_tau2_ = at::zeros_like(sinks);
      p_vk_ = at::zeros({m_, 2 * d_}, sinks.options());
      p2_v2_ = at::zeros({m_, d_}, sinks.options());
    }
    const at::Tensor lse = at::logaddexp(pivot_ + total_.log(), sinks);
    factor_ = (pivot_ - lse).exp_().masked_fill_(total_.eq(0), 0);
    factor2_ = factor_.square();
    const at::Tensor p_sink =
        (sinks - lse).exp_().masked_fill_(sinks.eq(lse), 1).masked_fill_(sinks.eq(-kInfinity), 0);
    finite_ = lse.isfinite().to(at::kDouble);
    count_ = for_heads((end_ - first_).clamp_min(0).unsqueeze(1)).to(at::kDouble);
    const at::Tensor sigma2_lse =
        (lse.square() + 1 + count_ / 16 + factor2_ * p2_tau2_).masked_fill_(finite_.eq(0), 0);
    row_rounding_ = sigma2_lse * settings_.rho2;
    row_terms_ = row_rounding_ + 1;

    result_.lse = lse;
    result_.sigma_lse = sigma2_lse.sqrt();
    result_.p_sink = p_sink;
    result_.entropy = entropy(lse, p_sink);
    result_.out = p_vk_.narrow(1, 0, d_) * factor_;

    seen_squares_ =
        for_heads(doc_.squares_to.index_select(0, end_) - doc_.squares_to.index_select(0, first_));
    seen_squares_.mul_(finite_);
    at::Tensor sigma2 = seen_squares_.narrow(1, 0, d_) * settings_.eta2 + settings_.eta2;
    sigma2.addcmul_(row_terms_, result_.out.square());
    if (with_tau_ && n_ > 0) {
      at::Tensor p2 = buffer(kSpare);  // P^2 f of Eq. 18
      p2.mul_(settings_.rho2).addcmul_(buffer(kLogits), row_terms_);
      sigma2.addcmul_(factor2_, over_keys(p2, v2()));
      if (rows_.dout.defined()) sums_of_dv(doc_.sigma2_dvk).addmm_(p2.t(), rows_.dout.square() * factor2_);
    } else {
      sigma2.addcmul_(factor2_ * row_terms_, p2_v2_);
    }
    result_.sigma_out = sigma2.sqrt_();
  }

  // sum_j P_ij (LSE_i - S_ij) + p_i (LSE_i - s)
  at::Tensor entropy(const at::Tensor& lse, const at::Tensor& p_sink) const {
    const at::Tensor p_logits = row_sum(p_vk_.narrow(1, d_, d_) * scaled_q_);
    const at::Tensor of_keys = ((total_ * lse - p_logits) * factor_).masked_fill_(factor_.eq(0), 0);
    const at::Tensor split = p_sink.gt(0).logical_and_(p_sink.lt(1));
    const at::Tensor of_sink = (p_sink * (lse - rows_.sinks)).masked_fill_(split.logical_not_(), 0);
    return (of_keys + of_sink).clamp_min_(0);
  }

  at::Tensor sums_of_dv(const at::Tensor& sums) const { return of_keys(sums).narrow(1, 0, d_); }
  at::Tensor sums_of_dk(const at::Tensor& sums) const { return of_keys(sums).narrow(1, d_, d_); }

  // Eq. 8; what Eq. 15 sums over keys.
  void backward_sums() {
    at::Tensor dp = buffer(kDp);
    at::mm_out(dp, rows_.dout, v().t());
    dp2_ = at::zeros_like(shift_);
    if (with_underflow_) {
      hide(dp, 0);
      dp2_ = row_square_sum(dp);
    }
    if (settings_.fp32) {
      at::Tensor psi2 = buffer(kPsi2), spare = buffer(kSpare);
      at::mm_out(psi2, rows_.dout.square() * sixteenth_of_d(), v2().t());
      psi2.addcmul_(dp, dp);
      at::mul_out(spare, dp, dp);
      p2_dp2_ = row_sum(spare.mul_(buffer(kTau2)).add_(psi2).mul_(buffer(kLogits)));
    }
    dp.mul_(buffer(kP));
    const at::Tensor p2_dp2 = row_square_sum(dp);
    p2_dp2_ = p2_dp2_.defined() ? p2_dp2_ + p2_dp2 : p2_dp2;
  }

  // Eq. 15.
  void sigma_delta() {
    const at::Tensor dout2 = rows_.dout.square();
    sigma2_delta_ = row_sum(dout2 * (result_.out.square() + settings_.eta2));
    sigma2_delta_.addcmul_(row_rounding_, result_.delta.square());
    if (n_ > 0) sigma2_delta_ += p2_dp2_ * factor2_ + dp2_ * settings_.eta2;
    result_.sigma_delta = sigma2_delta_.sqrt();
  }

  // Eq. 9 to 12, and of Eq. 16 and 17 what is summed over pairs.
  void gradients() {
    const at::Tensor p = buffer(kP), p2 = buffer(kLogits);
    at::Tensor ds = buffer(kDp);
    ds.addcmul_(p, shift_);
    result_.dq = over_keys(ds, k()) * (factor_ * settings_.scale);
    sums_of_dv(doc_.dvk).addmm_(p.t(), rows_.dout * factor_);
    sums_of_dk(doc_.dvk).addmm_(ds.t(), scaled_q_ * factor_);

    ds.square_();
    const at::Tensor q2 = scaled_q2_ * factor2_;
    const at::Tensor cancelled2 = most_ds2_ * (settings_.rho2 / 16);  // of g_ij, over P^2
    if (with_tau_) {
      ds.mul_(buffer(kTau2).mul_(settings_.rho2).add_(row_terms_));
      ds.addcmul_(p2, settings_.fp32 ? buffer(kPsi2) : cancelled2);
      ds2_k2_ = over_keys(ds, k2()) * factor2_;
      sums_of_dk(doc_.sigma2_dvk).addmm_(ds.t(), q2);
      sums_of_dk(doc_.sigma2_dvk).addmm_(p2.t(), q2 * sigma2_delta_);
    } else {
      ds2_k2_ = (over_keys(ds, k2()) * row_terms_ + p2_k2_ * cancelled2) * factor2_;
      sums_of_dk(doc_.sigma2_dvk).addmm_(ds.t(), q2 * row_terms_);
      const at::Tensor dout2 = rows_.dout.square() * (factor2_ * row_terms_);
      of_keys(doc_.sigma2_dvk).addmm_(p2.t(), at::cat({dout2, q2 * (sigma2_delta_ + cancelled2)}, 1));
    }
  }

  // Eq. 13, 16 and 20 of these rows.
  void backward_rows() {
    if (n_ == 0) {
      result_.dq = at::zeros_like(rows_.q);
      ds2_k2_ = at::zeros_like(rows_.q);
    }
    // e^2 in Eq. 16 and 17, and what a P that underflows leaves of dS.
    const at::Tensor least = most_ds2_ * settings_.flushed2 + settings_.eta2;
    const at::Tensor squares =
        at::cat({rows_.dout.square() * settings_.eta2, scaled_q2_ * least}, 1).mul_(finite_);
    doc_.row_squares.narrow(0, rows_.first, rows_.positions)
        .copy_(squares.view({rows_.heads, rows_.positions, 2 * d_}).sum(0));

    at::Tensor sigma2 = at::addcmul(ds2_k2_, seen_squares_.narrow(1, d_, d_), least);
    sigma2.addcmul_(sigma2_delta_, (p_vk_.narrow(1, d_, d_) * factor_).square_());
    sigma2.mul_(settings_.scale * settings_.scale);
    sigma2.addcmul_(row_terms_, result_.dq.square()).add_(settings_.eta2);
    const double step = kFixedPoint / settings_.u * settings_.scale * doc_.largest_key;
    const at::Tensor steps2 = (1 - result_.p_sink).square_() * most_ds2_ * (step * step);
    sigma2.add_(steps2 * (count_ / kKeysPerSquaredStep + 1));
    result_.sigma_dq = sigma2.sqrt_();

    const at::Tensor terms = result_.p_sink * shift_;
    const double additions = settings_.rho2 * (1 + static_cast<double>(doc_.rows) / 16);
    const at::Tensor sigma2_terms =
        result_.p_sink.square() * sigma2_delta_ + terms.square() * (row_rounding_ + additions);
    result_.dsinks = terms.view({rows_.heads, rows_.positions}).sum(1);
    result_.sigma2_dsinks = sigma2_terms.view({rows_.heads, rows_.positions}).sum(1);
  }

  struct Hidden {
    std::int64_t from, to;  // columns of the strip
    at::Tensor mask;        // [positions, to - from]
  };

  TruthDocument& doc_;
  const TruthSettings& settings_;
  const TruthRows& rows_;
  StripBuffers& buffers_;
  std::int64_t m_, n_ = 0, key_ = 0, d_;  // the strip is [m, n] from key `key_` on
  double truncation2_ = 0;                // Eq. 18's (D/32)^2
  bool with_pivot_ = true, with_tau_ = true, with_underflow_ = true;
  at::Tensor end_, first_;  // [positions] the keys that a row sees
  std::vector<Hidden> hidden_;
  at::Tensor vk_, vk2_;                           // [n, 2 d]
  at::Tensor scaled_q_, scaled_q2_;               // [m, d]
  at::Tensor pivot_, total_, factor_, factor2_;   // [m, 1] P = factor P~
  at::Tensor finite_, row_rounding_, row_terms_;  // [m, 1] is the LSE finite; Eq. 18's c; 1 + c
  at::Tensor p_vk_;                               // [m, 2 d] sums of P~ v and P~ k
  at::Tensor count_;                              // [m, 1] keys that a row sees
  at::Tensor p2_v2_, p2_k2_, p2_tau2_;            // [m, d] and [m, 1], over the square of the row's factor
  at::Tensor seen_squares_;                       // [m, 2 d] sums of v^2 and k^2 that a row sees
  at::Tensor shift_, sigma2_delta_;               // [m, 1] dLSE - Delta; Eq. 15
  at::Tensor dp2_, p2_dp2_, most_ds2_;            // [m, 1] sums of dP^2, of (P~ dP)^2; Eq. 16's B^2
  at::Tensor ds2_k2_;                             // [m, d]
  StripResult result_;
};

}  // namespace

at::Tensor StripBuffers::get(std::size_t which, std::int64_t rows, std::int64_t keys) {
  at::Tensor& buffer = buffers_.at(which);
  if (!buffer.defined() || buffer.numel() < rows * keys)
    buffer = at::empty({std::max(elements_, rows * keys)}, options_);
  return buffer.narrow(0, 0, rows * keys).view({rows, keys});
}

StripResult compute_strip(TruthDocument& document, const TruthRows& rows, StripBuffers& buffers) {
  return Strip(document, rows, buffers).run();
}

}  // namespace sinkscope::torch_paths
