// SPDX-License-Identifier: Apache-2.0
#include "src/explain/rounding.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

namespace sinkscope {
namespace {

using Vector = std::vector<double>;

// [rows, d] to [d, rows], so that loops over keys are the inner ones.
Vector turned(const Tensor& tensor, std::int64_t head, std::int64_t rows, std::int64_t d) {
  Vector values(static_cast<std::size_t>(rows * d)), columns(values.size());
  tensor.widen(head * rows * d, values);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t x = 0; x < d; ++x)
      columns[static_cast<std::size_t>(x * rows + row)] = values[static_cast<std::size_t>(row * d + x)];
  }
  return columns;
}

class Emulation {
 public:
  Emulation(const Case& c, std::int64_t batch, std::int64_t head, const RoundingModel& model)
      : c_(c),
        s_(c.problem.shape),
        softmax_(model.softmax),
        query_(batch * s_.hq + head),
        f_(right_function(c, head)),
        d_(static_cast<std::size_t>(s_.d)),
        sk_(static_cast<std::size_t>(s_.sk)) {
    const std::int64_t kv = batch * s_.hkv + f_.kv_head;
    k_ = turned(c.k, kv, s_.sk, s_.d);
    v_ = turned(c.v, kv, s_.sk, s_.d);
    sink_ = f_.sink == kNoSink ? kNoSink : rounded(f_.sink);
  }

  HeadResult run() {
    const auto rows = static_cast<std::size_t>(s_.sq);
    backward_ = c_.dout.given();
    for (auto* m : {&r_.out, &r_.dq}) m->assign(rows * d_, 0);
    for (auto* m : {&r_.lse, &r_.dsink, &r_.sigma2_dsink}) m->assign(rows, 0);
    for (auto* m : {&r_.dk, &r_.dv, &r_.sigma2_dk, &r_.sigma2_dv}) m->assign(sk_ * d_, 0);
    r_.sigma_out = r_.sigma_dq = Vector(rows * d_);
    r_.sigma_lse = Vector(rows);
    dk_ = dv_ = Vector(sk_ * d_);
    for (const Part& part : f_.parts) {
      for (std::int64_t row = part.rows.first; row < part.rows.end; ++row) run_row(part, row);
    }
    for (std::size_t key = 0; key < sk_; ++key) {
      for (std::size_t x = 0; x < d_; ++x) {
        r_.dk[key * d_ + x] = rounded(dk_[x * sk_ + key]);
        r_.dv[key * d_ + x] = rounded(dv_[x * sk_ + key]);
      }
    }
    return std::move(r_);
  }

 private:
  double rounded(double x) const {
    return s_.dtype == DType::kBf16 ? widen_bf16(round_to_bf16(x)) : widen_fp16(round_to_fp16(x));
  }
  // What the softmax is computed in.
  double of_softmax(double x) const { return softmax_ ? rounded(x) : x; }

  // row [d] times columns [d, keys of the range].
  void multiply(const Vector& row, const Vector& columns, Range keys, Vector& to) const {
    const auto count = static_cast<std::size_t>(keys.size());
    to.assign(count, 0);
    for (std::size_t x = 0; x < d_; ++x) {
      const double* column = columns.data() + x * sk_ + keys.first;
      for (std::size_t j = 0; j < count; ++j) to[j] += row[x] * column[j];
    }
  }

  // weights [keys of the range] times columns, one number per column.
  double sum_over(const Vector& weights, const Vector& columns, Range keys, std::size_t x) const {
    const double* column = columns.data() + x * sk_ + keys.first;
    double sum = 0;
    for (std::size_t j = 0; j < weights.size(); ++j) sum += weights[j] * column[j];
    return sum;
  }

  void add_outer(const Vector& weights, const Vector& row, Range keys, Vector& to) const {
    for (std::size_t x = 0; x < d_; ++x) {
      double* column = to.data() + x * sk_ + keys.first;
      for (std::size_t j = 0; j < weights.size(); ++j) column[j] += weights[j] * row[x];
    }
  }

  void run_row(const Part& part, std::int64_t row) {
    const std::int64_t own = row - part.rows.first + part.keys.size() - part.rows.size();
    const std::int64_t end =
        part.causal ? std::clamp<std::int64_t>(own + 1, 0, part.keys.size()) : part.keys.size();
    const std::int64_t first = part.window > 0 ? std::clamp<std::int64_t>(own + 1 - part.window, 0, end) : 0;
    const Range keys{part.keys.first + first, part.keys.first + end};
    if (keys.size() == 0) return;
    Vector q(d_);
    c_.q.widen((query_ * s_.sq + row) * s_.d, q);
    multiply(q, k_, keys, p_);
    for (double& x : p_) x = rounded(rounded(x) * f_.scale);
    softmax();
    const auto at = static_cast<std::size_t>(row) * d_;
    for (std::size_t x = 0; x < d_; ++x) r_.out[at + x] = rounded(sum_over(products_, v_, keys, x));
    if (backward_) backward(row, keys, q);
  }

  // Logits to probabilities, in place; the sink's in sink_p_.
  void softmax() {
    highest_ = static_cast<std::size_t>(std::max_element(p_.begin(), p_.end()) - p_.begin());
    double most = p_[highest_];
    if (sink_ > most) {
      most = sink_;
      highest_ = p_.size();
    }
    double total = 0;
    for (double& x : p_) total += x = std::exp(rounded(x - most));  // the shift is not part of the softmax
    sink_p_ = sink_ == kNoSink ? 0 : std::exp(rounded(sink_ - most));
    total += sink_p_;
    for (double& x : p_) x = of_softmax(x / total);
    sink_p_ = of_softmax(sink_p_ / total);
    products_ = p_;
    for (double& x : products_) x = rounded(x);
  }

  void backward(std::int64_t row, Range keys, const Vector& q) {
    Vector dout(d_);
    c_.dout.widen((query_ * s_.sq + row) * s_.d, dout);
    add_outer(products_, dout, keys, dv_);
    multiply(dout, v_, keys, ds_);
    double sum = 0;
    for (std::size_t j = 0; j < ds_.size(); ++j) sum += ds_[j] = of_softmax(p_[j] * rounded(ds_[j]));
    double all = 0;
    for (std::size_t j = 0; j < ds_.size(); ++j) all += ds_[j] = rounded(ds_[j] - p_[j] * sum);
    double sink_ds = rounded(-sink_p_ * sum);
    all += sink_ds;
    // The gradient of the subtracted maximum goes to where the maximum was.
    double& of_highest = highest_ < ds_.size() ? ds_[highest_] : sink_ds;
    of_highest = rounded(of_highest - rounded(all));
    r_.dsink[static_cast<std::size_t>(row)] = sink_ds;
    for (double& x : ds_) x = rounded(x * f_.scale);
    const auto at = static_cast<std::size_t>(row) * d_;
    for (std::size_t x = 0; x < d_; ++x) r_.dq[at + x] = rounded(sum_over(ds_, k_, keys, x));
    add_outer(ds_, q, keys, dk_);
  }

  const Case& c_;
  const AttentionShape& s_;
  bool softmax_;
  std::int64_t query_;
  HeadFunction f_;
  std::size_t d_, sk_;
  double sink_ = kNoSink;
  bool backward_ = false;
  Vector k_, v_;              // [d, sk]
  Vector dk_, dv_;            // [d, sk]
  Vector p_, products_, ds_;  // of a row: as the softmax has them, and as the products take them
  double sink_p_ = 0;
  std::size_t highest_ = 0;
  HeadResult r_;
};

}  // namespace

std::vector<RoundingModel> rounding_models(const Case& c) {
  const DType dtype = c.problem.shape.dtype;
  if (dtype != DType::kBf16 && dtype != DType::kFp16) return {};
  const std::string_view name = name_of(dtype);
  return {{fmt::format("rounding:softmax_{}", name),
           fmt::format("the same function, with logits and softmax rounded to {}", name),
           "no mistake: a path that keeps its scores and softmax in fp32 is more exact", true},
          {fmt::format("rounding:logits_{}", name),
           fmt::format("the same function, with logits and dP rounded to {} before an fp32 softmax", name),
           "no mistake: a path that keeps its scores in fp32 is more exact", false}};
}

HeadResult emulate(const Case& c, std::int64_t batch, std::int64_t head, const RoundingModel& model) {
  return Emulation(c, batch, head, model).run();
}

}  // namespace sinkscope
