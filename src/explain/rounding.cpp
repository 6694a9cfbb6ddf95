// SPDX-License-Identifier: Apache-2.0
#include "src/explain/rounding.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

#include "src/explain/narrow.hpp"

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

// The keys that a row of a part sees.
Range keys_of(const Part& part, std::int64_t row) {
  const std::int64_t nk = part.keys.size();
  const std::int64_t from_first = part.reversed ? part.rows.end - 1 - row : row - part.rows.first;
  const std::int64_t own = from_first + nk - part.rows.size();
  const std::int64_t end = part.causal ? std::clamp<std::int64_t>(own + 1, 0, nk) : nk;
  const std::int64_t first = part.window > 0 ? std::clamp<std::int64_t>(own + 1 - part.window, 0, end) : 0;
  if (part.reversed) return {part.keys.end - end, part.keys.end - first};
  return {part.keys.first + first, part.keys.first + end};
}

// Those that it sees in all parts, in order.
using KeyRanges = std::vector<Range>;

class Emulation {
 public:
  Emulation(const Case& c, std::int64_t batch, std::int64_t head, const HeadFunction& f,
            const RoundingModel& model)
      : c_(c),
        s_(c.problem.shape),
        softmax_(model.softmax),
        query_(batch * s_.hq + head),
        f_(f),
        d_(static_cast<std::size_t>(s_.d)),
        sk_(static_cast<std::size_t>(s_.sk)) {
    const std::int64_t kv = batch * s_.hkv + f_.kv_head;
    k_ = turned(c.k, kv, s_.sk, s_.d);
    v_ = turned(c.v, kv, s_.sk, s_.d);
    sink_ = f_.sink == kNoSink ? kNoSink : rounded(f_.sink);
  }

  HeadResult run(Range only, bool backward) {
    const auto rows = static_cast<std::size_t>(s_.sq);
    backward_ = backward && c_.dout.given();
    for (auto* m : {&r_.out, &r_.dq}) m->assign(rows * d_, 0);
    for (auto* m : {&r_.lse, &r_.dsink, &r_.sigma2_dsink}) m->assign(rows, 0);
    for (auto* m : {&r_.dk, &r_.dv, &r_.sigma2_dk, &r_.sigma2_dv}) m->assign(sk_ * d_, 0);
    r_.sigma_out = r_.sigma_dq = Vector(rows * d_);
    r_.sigma_lse = Vector(rows);
    dk_ = dv_ = Vector(sk_ * d_);
    for (std::int64_t row = only.first; row < only.end; ++row) run_row(row);
    for (std::size_t key = 0; key < sk_; ++key) {
      for (std::size_t x = 0; x < d_; ++x) {
        r_.dk[key * d_ + x] = f_.kv_weight * rounded(dk_[x * sk_ + key]);
        r_.dv[key * d_ + x] = f_.kv_weight * rounded(dv_[x * sk_ + key]);
      }
    }
    return std::move(r_);
  }

 private:
  double rounded(double x) const {
    return s_.dtype == DType::kBf16 ? nearest<digits_of(Narrow::kBf16)>(x) : nearest_fp16(x);
  }
  // What the softmax is computed in.
  double of_softmax(double x) const { return softmax_ ? rounded(x) : x; }

  // Calls body(place among all keys, first key, number of keys) for each range.
  template <typename Body>
  static void for_ranges(const KeyRanges& keys, const Body& body) {
    std::size_t from = 0;
    for (const Range& range : keys) {
      const auto count = static_cast<std::size_t>(range.size());
      body(from, range.first, count);
      from += count;
    }
  }

  // row [d] times columns [d, keys of the ranges].
  void multiply(const Vector& row, const Vector& columns, const KeyRanges& keys, Vector& to) const {
    to.assign(count_of(keys), 0);
    for_ranges(keys, [&](std::size_t from, std::int64_t first, std::size_t count) {
      for (std::size_t x = 0; x < d_; ++x) {
        const double* column = columns.data() + x * sk_ + first;
        for (std::size_t j = 0; j < count; ++j) to[from + j] += row[x] * column[j];
      }
    });
  }

  // weights [keys of the ranges] times columns, one number per column.
  double sum_over(const Vector& weights, const Vector& columns, const KeyRanges& keys, std::size_t x) const {
    double sum = 0;
    for_ranges(keys, [&](std::size_t from, std::int64_t first, std::size_t count) {
      const double* column = columns.data() + x * sk_ + first;
      for (std::size_t j = 0; j < count; ++j) sum += weights[from + j] * column[j];
    });
    return sum;
  }

  void add_outer(const Vector& weights, const Vector& row, const KeyRanges& keys, Vector& to) const {
    for_ranges(keys, [&](std::size_t from, std::int64_t first, std::size_t count) {
      for (std::size_t x = 0; x < d_; ++x) {
        double* column = to.data() + x * sk_ + first;
        for (std::size_t j = 0; j < count; ++j) column[j] += weights[from + j] * row[x];
      }
    });
  }

  static std::size_t count_of(const KeyRanges& keys) {
    std::int64_t count = 0;
    for (const Range& range : keys) count += range.size();
    return static_cast<std::size_t>(count);
  }

  void run_row(std::int64_t row) {
    KeyRanges keys;
    for (const Part& part : f_.parts) {
      if (part.rows.contains(row)) keys.push_back(keys_of(part, row));
    }
    std::sort(keys.begin(), keys.end(), [](const Range& a, const Range& b) { return a.first < b.first; });
    if (count_of(keys) == 0) return;
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

  void backward(std::int64_t row, const KeyRanges& keys, const Vector& q) {
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
    r_.dsink[static_cast<std::size_t>(row)] = f_.sink_weight * sink_ds;
    for (double& x : ds_) x = rounded(x * f_.scale);
    const auto at = static_cast<std::size_t>(row) * d_;
    for (std::size_t x = 0; x < d_; ++x) r_.dq[at + x] = rounded(sum_over(ds_, k_, keys, x));
    add_outer(ds_, q, keys, dk_);
  }

  const Case& c_;
  const AttentionShape& s_;
  bool softmax_;
  std::int64_t query_;
  const HeadFunction& f_;
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

bool can_emulate(const HeadFunction& f) {
  return f.layout == HeadLayout::kRight && f.softcap == 0 && f.backward == nullptr && !f.drops_dlse &&
         f.padding == PaddingRows::kLeftOut && !f.elsewhere && (f.sink == kNoSink || std::isfinite(f.sink));
}

HeadResult emulate(const Case& c, std::int64_t batch, std::int64_t head, const HeadFunction& function,
                   const RoundingModel& model, Range rows, bool backward) {
  return Emulation(c, batch, head, function, model).run(rows, backward);
}

}  // namespace sinkscope
