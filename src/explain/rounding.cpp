// SPDX-License-Identifier: Apache-2.0
#include "src/explain/rounding.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "fmt/format.h"

#include "src/explain/narrow.hpp"

namespace sinkscope {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<Matrix>;

constexpr std::int64_t kBlock = 64;  // rows whose products are made together

Matrix widened(const Tensor& tensor, std::int64_t first_row, std::int64_t rows, std::int64_t d) {
  Matrix values(rows, d);
  tensor.widen(first_row * d, {values.data(), static_cast<std::size_t>(values.size())});
  return values;
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

class Emulation {
 public:
  Emulation(const Case& c, std::int64_t batch, std::int64_t head, const HeadFunction& f,
            const RoundingModel& model)
      : c_(c), s_(c.problem.shape), softmax_(model.softmax), query_(batch * s_.hq + head), f_(f) {
    const std::int64_t kv = batch * s_.hkv + f_.kv_head;
    k_ = widened(c.k, kv * s_.sk, s_.sk, s_.d);
    v_ = widened(c.v, kv * s_.sk, s_.sk, s_.d);
    sink_ = f_.sink == kNoSink ? kNoSink : rounded(f_.sink);
  }

  HeadResult run(Range only, bool backward) {
    const auto rows = static_cast<std::size_t>(s_.sq);
    const auto d = static_cast<std::size_t>(s_.d), keys = static_cast<std::size_t>(s_.sk);
    backward_ = backward && c_.dout.given();
    for (auto* m : {&r_.out, &r_.dq, &r_.sigma_out, &r_.sigma_dq}) m->assign(rows * d, 0);
    for (auto* m : {&r_.lse, &r_.sigma_lse, &r_.dsink, &r_.sigma2_dsink}) m->assign(rows, 0);
    for (auto* m : {&r_.dk, &r_.dv, &r_.sigma2_dk, &r_.sigma2_dv}) m->assign(keys * d, 0);
    for (std::int64_t row = only.first; row < only.end; row += kBlock)
      run_block({row, std::min(row + kBlock, only.end)});
    for (auto* m : {&r_.dk, &r_.dv}) {
      for (double& x : *m) x = f_.kv_weight * rounded(x);
    }
    return std::move(r_);
  }

 private:
  double rounded(double x) const {
    return s_.dtype == DType::kBf16 ? nearest<digits_of(Narrow::kBf16)>(x) : nearest_fp16(x);
  }
  // What the softmax is computed in.
  double of_softmax(double x) const { return softmax_ ? rounded(x) : x; }

  // Rows of a result of the head.
  Rows part_of(std::vector<double>& result, Range rows) const {
    return {result.data() + rows.first * s_.d, rows.size(), s_.d};
  }

  // What each row of the block sees, in order, and all of these together.
  void find_keys(Range rows) {
    seen_.assign(static_cast<std::size_t>(rows.size()), {});
    keys_ = {s_.sk, 0};
    for (std::int64_t row = rows.first; row < rows.end; ++row) {
      std::vector<Range>& seen = seen_[static_cast<std::size_t>(row - rows.first)];
      for (const Part& part : f_.parts) {
        const Range keys = part.rows.contains(row) ? keys_of(part, row) : Range{};
        if (keys.size() > 0) seen.push_back(keys);
      }
      std::sort(seen.begin(), seen.end(), [](const Range& a, const Range& b) { return a.first < b.first; });
      for (const Range& keys : seen)
        keys_ = {std::min(keys_.first, keys.first), std::max(keys_.end, keys.end)};
    }
  }

  // Calls body(columns) for what a row of the block sees, as columns of the block's matrices.
  template <typename Body>
  void for_seen(std::int64_t i, const Body& body) const {
    for (const Range& keys : seen_[static_cast<std::size_t>(i)])
      body(Range{keys.first - keys_.first, keys.end - keys_.first});
  }

  void run_block(Range rows) {
    find_keys(rows);
    if (keys_.size() <= 0) return;
    const Matrix q = widened(c_.q, query_ * s_.sq + rows.first, rows.size(), s_.d);
    const auto k = k_.middleRows(keys_.first, keys_.size()), v = v_.middleRows(keys_.first, keys_.size());
    s_block_.noalias() = q * k.transpose();
    p_.setZero(rows.size(), keys_.size());
    products_.setZero(rows.size(), keys_.size());
    highest_.assign(static_cast<std::size_t>(rows.size()), -1);
    sink_p_.assign(static_cast<std::size_t>(rows.size()), 0);
    for (std::int64_t i = 0; i < rows.size(); ++i) softmax(i);
    Rows out = part_of(r_.out, rows);
    out.noalias() = products_ * v;
    out = out.unaryExpr([this](double x) { return rounded(x); });
    if (backward_) backward(rows, q);
  }

  // Logits of a row to probabilities.
  void softmax(std::int64_t i) {
    if (seen_[static_cast<std::size_t>(i)].empty()) return;
    double most = kNoSink;
    std::int64_t& highest = highest_[static_cast<std::size_t>(i)];
    for_seen(i, [&](Range columns) {
      for (std::int64_t j = columns.first; j < columns.end; ++j) {
        double& x = s_block_(i, j) = rounded(rounded(s_block_(i, j)) * f_.scale);
        if (highest < 0 || x > most) most = x, highest = j;
      }
    });
    if (sink_ > most) most = sink_, highest = -1;
    double total = 0;
    for_seen(i, [&](Range columns) {
      auto logits = s_block_.row(i).segment(columns.first, columns.size());
      auto p = p_.row(i).segment(columns.first, columns.size());
      p = logits.unaryExpr([&](double x) { return rounded(x - most); });  // no part of the softmax
      p = p.array().exp();
      total += p.sum();
    });
    double& sink_p = sink_p_[static_cast<std::size_t>(i)];
    sink_p = sink_ == kNoSink ? 0 : std::exp(rounded(sink_ - most));
    total += sink_p;
    sink_p = of_softmax(sink_p / total);
    for_seen(i, [&](Range columns) {
      for (std::int64_t j = columns.first; j < columns.end; ++j) {
        p_(i, j) = of_softmax(p_(i, j) / total);
        products_(i, j) = rounded(p_(i, j));
      }
    });
  }

  void backward(Range rows, const Matrix& q) {
    const Matrix dout = widened(c_.dout, query_ * s_.sq + rows.first, rows.size(), s_.d);
    const auto k = k_.middleRows(keys_.first, keys_.size()), v = v_.middleRows(keys_.first, keys_.size());
    part_of(r_.dv, keys_).noalias() += products_.transpose() * dout;
    ds_.noalias() = dout * v.transpose();
    for (std::int64_t i = 0; i < rows.size(); ++i)
      r_.dsink[static_cast<std::size_t>(rows.first + i)] = f_.sink_weight * softmax_backward(i);
    Rows dq = part_of(r_.dq, rows);
    dq.noalias() = ds_ * k;
    dq = dq.unaryExpr([this](double x) { return rounded(x); });
    part_of(r_.dk, keys_).noalias() += ds_.transpose() * q;
  }

  // dP of a row to the dS that is multiplied, in place; returns the sink's dS.
  double softmax_backward(std::int64_t i) {
    double sum = 0, all = 0;
    for_seen(i, [&](Range columns) {
      for (std::int64_t j = columns.first; j < columns.end; ++j)
        sum += ds_(i, j) = of_softmax(p_(i, j) * rounded(ds_(i, j)));
    });
    for_seen(i, [&](Range columns) {
      for (std::int64_t j = columns.first; j < columns.end; ++j)
        all += ds_(i, j) = rounded(ds_(i, j) - p_(i, j) * sum);
    });
    double sink_ds = rounded(-sink_p_[static_cast<std::size_t>(i)] * sum);
    all += sink_ds;
    // The gradient of the subtracted maximum goes to where the maximum was.
    const std::int64_t highest = highest_[static_cast<std::size_t>(i)];
    double& of_highest = highest < 0 ? sink_ds : ds_(i, highest);
    of_highest = rounded(of_highest - rounded(all));
    std::int64_t done = 0;
    const auto clear = [&](std::int64_t end) {
      for (; done < end; ++done) ds_(i, done) = 0;
    };
    for_seen(i, [&](Range columns) {
      clear(columns.first);
      for (; done < columns.end; ++done) ds_(i, done) = rounded(ds_(i, done) * f_.scale);
    });
    clear(ds_.cols());
    return sink_ds;
  }

  const Case& c_;
  const AttentionShape& s_;
  bool softmax_;
  std::int64_t query_;
  const HeadFunction& f_;
  double sink_ = kNoSink;
  bool backward_ = false;
  Matrix k_, v_;  // [sk, d]
  // Of a block: the keys that some row of it sees, and what each does; matrices are [rows, those keys].
  Range keys_;
  std::vector<std::vector<Range>> seen_;
  Matrix s_block_, p_, products_, ds_;  // P as the softmax has it, and as products take it
  std::vector<std::int64_t> highest_;   // the column of the largest logit; -1: the sink
  std::vector<double> sink_p_;
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
