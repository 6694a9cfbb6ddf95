// SPDX-License-Identifier: Apache-2.0
#include "src/explain/evaluation.hpp"

#include <algorithm>
#include <cmath>

#include "src/explain/softcap.hpp"

namespace sinkscope {
namespace {

// Rows of one head, widened; row-major with `columns` columns.
std::vector<double> rows_of(const Tensor& tensor, std::int64_t head, std::int64_t rows,
                            std::int64_t columns) {
  if (!tensor.given()) return {};
  std::vector<double> values(static_cast<std::size_t>(rows * columns));
  tensor.widen(head * rows * columns, values);
  return values;
}

// A range of rows, from the end where `reversed`; and the way back, adding.
std::vector<double> taken(const std::vector<double>& from, Range range, std::int64_t columns, bool reversed) {
  std::vector<double> part(static_cast<std::size_t>(range.size() * columns));
  for (std::int64_t row = 0; row < range.size(); ++row) {
    const std::int64_t source = reversed ? range.end - 1 - row : range.first + row;
    std::copy_n(from.begin() + source * columns, columns, part.begin() + row * columns);
  }
  return part;
}

double log_add(double a, double b) {
  const double most = std::max(a, b);
  if (std::isinf(most)) return most;
  return most + std::log(std::exp(a - most) + std::exp(b - most));
}

// Calls body(part, its truth, row within the part, row of the head).
template <typename Body>
void for_rows(const std::vector<Part>& parts, const std::vector<Truth>& forwards, const Body& body) {
  for (std::size_t i = 0; i < parts.size(); ++i) {
    for (std::int64_t from = 0; from < parts[i].rows.size(); ++from) {
      body(parts[i], forwards[i], static_cast<std::size_t>(from),
           static_cast<std::size_t>(source_row(parts[i], from)));
    }
  }
}

}  // namespace

double share_of(double a, double b) {
  return a == b ? 1 : std::exp(a - b);
}

Evaluation::Evaluation(const Case& c, std::int64_t batch, std::int64_t head, const HeadFunction& f,
                       bool backward)
    : s_(c.problem.shape), f_(&f), backward_(backward && c.dout.given()) {
  rounding_ = {unit_roundoff(s_.dtype), underflow_unit(s_.dtype)};
  const std::int64_t query = batch * s_.hq + head;
  const std::int64_t kv = batch * s_.hkv + f.kv_head;
  q_ = rows_of(c.q, query, s_.sq, s_.d);
  k_ = rows_of(c.k, kv, s_.sk, s_.d);
  v_ = rows_of(c.v, kv, s_.sk, s_.d);
  const bool padded = f.padding != PaddingRows::kLeftOut && c.padded_dout.given();
  dout_ = rows_of(padded ? c.padded_dout : c.dout, query, s_.sq, s_.d);
  if (!f.drops_dlse) dlse_ = rows_of(padded ? c.padded_dlse : c.dlse, query, s_.sq, 1);

  allocate();
  silence(f.rows);
  // Rows of one part and with their own constants need no look at the forward before the backward.
  at_once_ = backward_ && f.parts.size() == 1 && f.backward == nullptr;
  for (const Part& part : f.parts) {
    if (at_once_)
      forwards_.push_back(run_part(part, taken(dout_, part.rows, s_.d, part.reversed),
                                   taken(dlse_, dlse_.empty() ? Range{} : part.rows, 1, part.reversed)));
    else
      forwards_.push_back(run_part(part, {}, {}));
  }
  merge();
  made_.resize(f.parts.size());
  forward_ = std::move(r_);
}

HeadResult Evaluation::run(const HeadFunction& f) {
  f_ = &f;
  r_ = forward_;
  if (backward_) add_gradients();
  hand_out_lse();
  return std::move(r_);
}

void Evaluation::allocate() {
  const auto rows = static_cast<std::size_t>(s_.sq), keys = static_cast<std::size_t>(s_.sk);
  const auto d = static_cast<std::size_t>(s_.d);
  for (auto* m : {&r_.out, &r_.sigma_out}) m->assign(rows * d, 0);
  r_.lse.assign(rows, kNoSink);
  for (auto* m : {&r_.sigma_lse, &r_.p, &r_.delta}) m->assign(rows, 0);
  if (!backward_) return;
  for (auto* m : {&r_.dq, &r_.sigma_dq}) m->assign(rows * d, 0);
  for (auto* m : {&r_.dk, &r_.dv, &r_.sigma2_dk, &r_.sigma2_dv}) m->assign(keys * d, 0);
  for (auto* m : {&r_.dsink, &r_.sigma2_dsink}) m->assign(rows, 0);
}

// Gradients come from these rows alone.
void Evaluation::silence(Range rows) {
  for (std::int64_t row = 0; row < s_.sq && !dout_.empty(); ++row) {
    if (rows.contains(row)) continue;
    std::fill_n(dout_.begin() + row * s_.d, s_.d, 0.0);
    if (!dlse_.empty()) dlse_[static_cast<std::size_t>(row)] = 0;
  }
}

Truth Evaluation::run_part(const Part& part, const std::vector<double>& dout, const std::vector<double>& dlse,
                           double scale_factor, bool sigma) const {
  reference::Problem problem;
  problem.sq = part.rows.size();
  problem.sk = part.keys.size();
  problem.d = s_.d;
  problem.causal = part.causal;
  problem.window = part.window;
  problem.scale = f_->scale * scale_factor;
  const std::vector<double> q = taken(q_, part.rows, s_.d, part.reversed);
  const std::vector<double> k = taken(k_, part.keys, s_.d, part.reversed);
  const std::vector<double> v = taken(v_, part.keys, s_.d, part.reversed);
  std::vector<double> sinks;
  if (part.sink && f_->sink != kNoSink && scale_factor == 1) sinks = {f_->sink};
  const reference::Inputs inputs = {q, k, v, sinks, dout, dlse};
  if (f_->softcap > 0) return evaluate_softcap(problem, inputs, rounding_, f_->softcap);
  return reference::attention(problem, inputs, rounding_, {1, sigma});
}

// One softmax over the keys of all parts of a row.
void Evaluation::merge() {
  for_rows(f_->parts, forwards_, [&](const Part&, const Truth& t, std::size_t from, std::size_t row) {
    r_.lse[row] = log_add(r_.lse[row], t.value.lse[from]);
  });
  const auto d = static_cast<std::size_t>(s_.d);
  for_rows(f_->parts, forwards_, [&](const Part&, const Truth& t, std::size_t from, std::size_t row) {
    const double w = share_of(t.value.lse[from], r_.lse[row]);
    r_.p[row] += w * t.p_sink[from];
    r_.sigma_lse[row] = std::max(r_.sigma_lse[row], t.sigma.lse[from]);
    for (std::size_t column = 0; column < d; ++column) {
      const double out = t.value.out[from * d + column], sigma = t.sigma.out[from * d + column];
      r_.out[row * d + column] += w * out;
      r_.sigma_out[row * d + column] += w * w * (sigma * sigma - out * out);
    }
  });
  for (std::size_t i = 0; i < r_.out.size(); ++i)
    r_.sigma_out[i] = std::sqrt(r_.sigma_out[i] + r_.out[i] * r_.out[i]);
  for (std::size_t row = 0; row < r_.delta.size() && !dout_.empty(); ++row) {
    for (std::size_t column = 0; column < d; ++column)
      r_.delta[row] += dout_[row * d + column] * r_.out[row * d + column];
  }
}

void Evaluation::hand_out_lse() {
  if (f_->lse_of_keys) take_lse_of_keys();
  for (double& lse : r_.lse) lse *= f_->lse_factor;
}

// From the keys themselves: LSE + log(1 - p) cancels where the sink takes nearly all, and has another sigma.
void Evaluation::take_lse_of_keys() {
  std::fill(r_.lse.begin(), r_.lse.end(), kNoSink);
  std::fill(r_.sigma_lse.begin(), r_.sigma_lse.end(), 0);
  std::vector<Truth> forwards;
  for (Part part : f_->parts) {
    part.sink = false;
    forwards.push_back(run_part(part, {}, {}));
  }
  for_rows(f_->parts, forwards, [&](const Part&, const Truth& t, std::size_t from, std::size_t row) {
    r_.lse[row] = log_add(r_.lse[row], t.value.lse[from]);
    r_.sigma_lse[row] = std::max(r_.sigma_lse[row], t.sigma.lse[from]);
  });
}

}  // namespace sinkscope
