// SPDX-License-Identifier: Apache-2.0
#include "src/explain/rounded_head.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace sinkscope {
namespace {

using Vector = std::vector<double>;

void narrow_all(Vector& values, Narrow format) {
  for (double& x : values) x = narrowed(x, format);
}

// a [rows, d] times b [keys, d], for each row only the keys from `first` to `end`: [rows, keys].
Vector multiply(const Vector& a, const Vector& b, std::size_t d,
                const std::vector<std::pair<std::size_t, std::size_t>>& seen) {
  const std::size_t rows = a.size() / d, keys = b.size() / d;
  Vector columns(b.size()), result(rows * keys);
  for (std::size_t key = 0; key < keys; ++key) {
    for (std::size_t x = 0; x < d; ++x) columns[x * keys + key] = b[key * d + x];
  }
  for (std::size_t row = 0; row < rows; ++row) {
    double* const to = result.data() + row * keys;
    const auto [first, end] = seen[row];
    for (std::size_t x = 0; x < d; ++x) {
      const double factor = a[row * d + x];
      const double* const column = columns.data() + x * keys;
      for (std::size_t key = first; key < end; ++key) to[key] += factor * column[key];
    }
  }
  return result;
}

double log_add(double a, double b) {
  const double most = std::max(a, b);
  if (std::isinf(most)) return most;
  return most + std::log1p(std::exp(std::min(a, b) - most));
}

// The format in which products take what is not rounded already.
Narrow operand_format(const HeadData& head, const Roundings& r) {
  return r.products == Narrow::kNone ? head.format : r.products;
}

bool changes_logits(const Roundings& r) {
  return r.products != Narrow::kNone || r.scaled_q || r.s;
}

}  // namespace

RoundedBlock::RoundedBlock(const HeadData& head, std::vector<std::int64_t> rows,
                           std::vector<std::int64_t> keys)
    : head_(head), rows_(std::move(rows)), keys_(std::move(keys)) {
  const auto position = [&](std::int64_t key) {
    return static_cast<std::size_t>(std::lower_bound(keys_.begin(), keys_.end(), key) - keys_.begin());
  };
  for (const std::int64_t row : rows_) {
    const Range seen = head_.blocks[static_cast<std::size_t>(row)].first;
    seen_.emplace_back(position(seen.first), position(std::max(seen.first, seen.end)));
  }
}

const RoundedBlock::Logits& RoundedBlock::logits(const Roundings& r) {
  Logits& l = logits_[{r.products, r.scaled_q}];
  if (!l.q.empty()) return l;
  const auto d = static_cast<std::size_t>(head_.d);
  const auto taken = [&](const Vector& from, const std::vector<std::int64_t>& which) {
    Vector part;
    if (from.empty()) return part;
    part.reserve(which.size() * d);
    for (const std::int64_t i : which)
      part.insert(part.end(), from.begin() + i * head_.d, from.begin() + (i + 1) * head_.d);
    return part;
  };
  l.q = taken(head_.q, rows_);
  l.dout = taken(head_.dout, rows_);
  l.k = taken(head_.k, keys_);
  l.v = taken(head_.v, keys_);
  for (Vector* operand : {&l.q, &l.dout, &l.k, &l.v}) narrow_all(*operand, r.products);
  const double scale = head_.function.scale;
  Vector q = l.q;
  for (double& x : q) x = r.scaled_q ? narrowed(scale * x, head_.format) : scale * x;
  l.s = multiply(q, l.k, d, seen_);
  if (!l.dout.empty()) l.dp = multiply(l.dout, l.v, d, seen_);
  return l;
}

// The logits that row `i` sees and P, both as the forward has them.
RoundedBlock::Row RoundedBlock::forward_row(const Roundings& r, std::size_t i) {
  const Logits& l = logits(r);
  Row row;
  row.index = i;
  std::tie(row.first, row.end) = seen_[i];
  const double* const s = l.s.data() + i * keys_.size();
  row.s.assign(s + row.first, s + row.end);
  if (r.s) narrow_all(row.s, head_.format);
  row.lse = head_.lse[static_cast<std::size_t>(rows_[i])];
  if (row.s.empty()) return row;
  row.most = *std::max_element(row.s.begin(), row.s.end());
  if (changes_logits(r) && is_complete()) {
    double sum = 0;
    for (const double x : row.s) sum += std::exp(x - row.most);
    row.lse = log_add(row.most + std::log(sum), head_.function.sink);
  }
  row.p.resize(row.s.size());
  for (std::size_t j = 0; j < row.p.size(); ++j) {
    row.p[j] = std::isfinite(row.lse) ? std::exp(row.s[j] - row.lse) : 0;
    if (r.softmax) row.p[j] = narrowed(row.p[j], head_.format);
  }
  return row;
}

// For each key that the row sees.
Vector RoundedBlock::pivots(const Row& row, Pivot pivot) const {
  if (pivot == Pivot::kRow || pivot == Pivot::kLse)
    return Vector(row.count(), pivot == Pivot::kRow ? row.most : row.lse);
  const std::int64_t tile = pivot == Pivot::kUp64 || pivot == Pivot::kDown64 ? 64 : 128;
  const bool up = pivot == Pivot::kUp64 || pivot == Pivot::kUp128 || pivot == Pivot::kBlock;
  const Range seen = head_.blocks[static_cast<std::size_t>(rows_[row.index])].second;
  const auto tile_of = [&](std::size_t j) {
    const std::int64_t key = keys_[row.first + j];
    return (pivot == Pivot::kBlock ? key - seen.first : key) / tile;
  };
  Vector result(row.count());
  double most = kNoSink;
  const std::size_t count = row.count();
  for (std::size_t done = 0; done < count;) {
    std::size_t size = 0;
    const auto at = [&](std::size_t n) { return up ? done + n : count - 1 - done - n; };
    while (done + size < count && tile_of(at(size)) == tile_of(at(0)))
      most = std::max(most, row.s[at(size++)]);
    for (std::size_t n = 0; n < size; ++n) result[at(n)] = most;
    done += size;
  }
  return result;
}

// The weights that multiply V; returns what their sum is multiplied by.
double RoundedBlock::weigh(const Roundings& r, const Row& row, Vector& weights) const {
  weights = row.p;
  if (r.pivot == Pivot::kNone || !std::isfinite(row.lse)) return 1;
  const Narrow format = operand_format(head_, r);
  const Vector relative = pivots(row, r.pivot);
  double sum = 0, exact = 0, last = NAN, factor = 1;
  for (std::size_t j = 0; j < weights.size(); ++j) {
    if (relative[j] != last) {
      last = relative[j];
      factor = std::exp(last - row.lse);
    }
    exact += weights[j];
    weights[j] = factor * narrowed(r.softmax ? weights[j] / factor : std::exp(row.s[j] - last), format);
    sum += weights[j];
  }
  if (r.exact_sum) return 1;
  const double p_sink = head_.function.sink == kNoSink ? 0 : std::exp(head_.function.sink - row.lse);
  return 1 / (sum + p_sink);
}

bool RoundedBlock::is_tied(std::size_t i) {
  const Row row = forward_row({}, i);
  const auto is_one = [&](double s) { return narrowed(std::exp(s - row.most), head_.format) == 1; };
  return std::count_if(row.s.begin(), row.s.end(), is_one) > 1;
}

Vector RoundedBlock::rounded_up_to_one() {
  const auto d = static_cast<std::size_t>(head_.d);
  Vector result(rows_.size() * d);
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const Row row = forward_row({}, i);
    if (row.p.empty() || !std::isfinite(row.lse)) continue;
    const double unit = std::exp(row.most - row.lse);
    for (std::size_t j = 0; j < row.s.size(); ++j) {
      const double p = std::exp(row.s[j] - row.most);
      if (narrowed(p, head_.format) != 1) continue;
      const double* const v = logits({}).v.data() + (row.first + j) * d;
      for (std::size_t x = 0; x < d; ++x) result[i * d + x] += (1 - p) * unit * v[x];
    }
  }
  return result;
}

Vector RoundedBlock::out(const Roundings& r) {
  const auto d = static_cast<std::size_t>(head_.d);
  Vector result(rows_.size() * d), weights;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const Row row = forward_row(r, i);
    if (row.p.empty()) continue;
    double factor = weigh(r, row, weights);
    if (r.accumulate > 0 && r.pivot != Pivot::kLse && !r.softmax && std::isfinite(row.lse)) {
      // Where P is not normalised before, the sum is kept in units of the row's largest P.
      const double unit = std::exp(row.lse - row.most);
      for (double& w : weights) w *= unit;
      factor /= unit;
    }
    const Logits& l = logits(r);
    double* const to = result.data() + i * d;
    for (std::size_t j = 0; j < weights.size(); ++j) {
      const double* const v = l.v.data() + (row.first + j) * d;
      for (std::size_t x = 0; x < d; ++x) to[x] += weights[j] * v[x];
      if (r.accumulate > 0 &&
          ((j + 1) % static_cast<std::size_t>(r.accumulate) == 0 || j + 1 == weights.size())) {
        for (std::size_t x = 0; x < d; ++x) to[x] = narrowed(to[x], head_.format);
      }
    }
    for (std::size_t x = 0; x < d; ++x) to[x] *= factor;
  }
  return result;
}

Vector RoundedBlock::lse(const Roundings& r) {
  Vector result;
  for (std::size_t i = 0; i < rows_.size(); ++i) result.push_back(forward_row(r, i).lse);
  return result;
}

std::pair<double, double> RoundedBlock::scalars(const Roundings& r, std::size_t i) {
  const auto at = static_cast<std::size_t>(rows_[i]);
  const bool is_whole =
      changes_logits(r) || r.delta == DeltaFrom::kUnroundedOut || (r.softmax && r.delta == DeltaFrom::kExact);
  double lse = head_.lse[at], delta = head_.delta[at];
  if (is_whole) {
    const Row row = forward_row(r, i);
    lse = row.lse;
    Vector weights = row.p;
    double factor = 1;
    if (r.delta == DeltaFrom::kUnroundedOut && !row.p.empty()) factor = weigh(r, row, weights);
    const double* const dp = logits(r).dp.data() + i * keys_.size() + row.first;
    delta = 0;
    for (std::size_t j = 0; j < weights.size(); ++j) delta += factor * weights[j] * dp[j];
  }
  if (r.own_lse) lse = head_.own_lse[at];
  if (r.delta == DeltaFrom::kOut) delta = head_.own_delta[at];
  if (r.narrow_delta) delta = narrowed(delta, head_.format);
  return {lse, delta};
}

// P of the backward in row.p, dS in `ds`, as both are before a product takes them.
void RoundedBlock::backward_row(const Roundings& r, std::size_t i, double lse, double delta, Row& row,
                                Vector& ds) {
  Roundings logits_alone = r;
  logits_alone.softmax = false;
  row = forward_row(logits_alone, i);
  const double* const dp = logits(r).dp.data() + i * keys_.size() + row.first;
  const double dlse = head_.dlse.empty() ? 0 : head_.dlse[static_cast<std::size_t>(rows_[i])];
  ds.resize(row.p.size());
  for (std::size_t j = 0; j < ds.size(); ++j) {
    if (lse != row.lse) row.p[j] = std::isfinite(lse) ? std::exp(row.s[j] - lse) : 0;
    if (r.softmax) row.p[j] = narrowed(row.p[j], head_.format);
    ds[j] = row.p[j] * ((r.dp ? narrowed(dp[j], head_.format) : dp[j]) - delta + dlse);
  }
  if (r.ds || r.products != Narrow::kNone) narrow_all(ds, operand_format(head_, r));
  if (r.p || r.products != Narrow::kNone) narrow_all(row.p, operand_format(head_, r));
}

Vector RoundedBlock::dq(const Roundings& r) {
  const auto d = static_cast<std::size_t>(head_.d);
  Vector result(rows_.size() * d), ds;
  Row row;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const auto [lse, delta] = scalars(r, i);
    backward_row(r, i, lse, delta, row, ds);
    const Logits& l = logits(r);
    double* const to = result.data() + i * d;
    for (std::size_t j = 0; j < ds.size(); ++j) {
      const double* const k = l.k.data() + (row.first + j) * d;
      for (std::size_t x = 0; x < d; ++x) to[x] += ds[j] * k[x];
      if (r.accumulate > 0 && ((j + 1) % static_cast<std::size_t>(r.accumulate) == 0 || j + 1 == ds.size())) {
        for (std::size_t x = 0; x < d; ++x) to[x] = narrowed(to[x], head_.format);
      }
    }
    for (std::size_t x = 0; x < d; ++x) to[x] *= head_.function.scale;
  }
  return result;
}

void RoundedBlock::add_keys(bool is_dk, const Roundings& r, const RowScalars& scalars, Vector& sums) {
  const auto d = static_cast<std::size_t>(head_.d);
  Vector ds;
  Row row;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const auto at = static_cast<std::size_t>(rows_[i]);
    backward_row(r, i, scalars.lse[at], scalars.delta[at], row, ds);
    const Vector& weights = is_dk ? ds : row.p;
    const double* const other = (is_dk ? logits(r).q : logits(r).dout).data() + i * d;
    for (std::size_t j = 0; j < weights.size(); ++j) {
      double* const to = sums.data() + (row.first + j) * d;
      for (std::size_t x = 0; x < d; ++x) to[x] += weights[j] * other[x];
    }
    if (r.accumulate > 0 && ((i + 1) % static_cast<std::size_t>(r.accumulate) == 0 || i + 1 == rows_.size()))
      narrow_all(sums, head_.format);
  }
}

}  // namespace sinkscope
