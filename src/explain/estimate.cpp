// SPDX-License-Identifier: Apache-2.0
#include "src/explain/estimate.hpp"

#include <algorithm>
#include <cmath>

namespace sinkscope {
namespace {

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// What a row says of the sink: with a sink s, out is out0 sigmoid(lse0 - s) and the LSE logaddexp(lse0, s).
struct SinkRow {
  double lse0;
  double along, norm2;  // <got, out0>, <out0, out0>; of rows judged by out
  double lse;           // the path's; of rows judged by the LSE
};

double misfit(const std::vector<SinkRow>& rows, double sink, bool by_lse) {
  double sum = 0;
  for (const SinkRow& row : rows) {
    const double gain = sigmoid(row.lse0 - sink);
    if (by_lse && (std::isinf(row.lse) || std::isinf(sink))) {
      constexpr double kFar = 1e100;  // an infinite LSE is that of an infinite sink, and no other's
      const double lse = sink > 0 ? sink : row.lse0;
      sum += std::isinf(row.lse) || std::isinf(lse) ? (row.lse == lse ? 0 : kFar)
                                                    : (row.lse - lse) * (row.lse - lse);
    } else if (by_lse) {
      const double lse = sink > row.lse0 ? sink + std::log1p(std::exp(row.lse0 - sink))
                                         : row.lse0 + std::log1p(std::exp(sink - row.lse0));
      sum += (row.lse - lse) * (row.lse - lse);
    } else {
      sum += gain * (row.norm2 * gain - 2 * row.along);
    }
  }
  return sum;
}

// Evenly spaced rows of a head, each with its logits before the scale.
struct ProbeRow {
  std::vector<double> logits;
  Range keys;
  std::vector<double> got;
};

class LogitSearch {
 public:
  LogitSearch(const Case& c, std::int64_t batch, const HeadFunction& base)
      : d_(c.problem.shape.d), base_(base) {
    const AttentionShape& s = c.problem.shape;
    v_.resize(static_cast<std::size_t>(s.sk * s.d));
    c.v.widen((batch * s.hkv + base.kv_head) * s.sk * s.d, v_);
  }

  void add(const std::vector<double>& q, const std::vector<double>& k, Range keys, std::vector<double> got) {
    ProbeRow row{std::vector<double>(static_cast<std::size_t>(keys.size())), keys, std::move(got)};
    const auto d = static_cast<std::size_t>(d_);
    for (std::size_t j = 0; j < row.logits.size(); ++j) {
      for (std::size_t column = 0; column < d; ++column)
        row.logits[j] += q[column] * k[(static_cast<std::size_t>(keys.first) + j) * d + column];
    }
    rows_.push_back(std::move(row));
  }

  // Sum of squared errors of out or lse, were the logits this function of q . k.
  template <typename Logit>
  double misfit(Logit of) const {
    double sum = 0;
    std::vector<double> out(static_cast<std::size_t>(d_));
    for (const ProbeRow& row : rows_) {
      double most = base_.sink;
      for (const double logit : row.logits) most = std::max(most, of(logit));
      double total = base_.sink == kNoSink ? 0 : std::exp(base_.sink - most);
      std::fill(out.begin(), out.end(), 0.0);
      for (std::size_t j = 0; j < row.logits.size(); ++j) {
        const double e = std::exp(of(row.logits[j]) - most);
        total += e;
        const double* v = v_.data() + (static_cast<std::size_t>(row.keys.first) + j) * out.size();
        for (std::size_t column = 0; column < out.size() && row.got.size() > 1; ++column)
          out[column] += e * v[column];
      }
      if (row.got.size() == 1) {
        sum += std::pow(row.got[0] - (most + std::log(total)), 2);
        continue;
      }
      for (std::size_t column = 0; column < out.size(); ++column)
        sum += std::pow(row.got[column] - out[column] / total, 2);
    }
    return sum;
  }

  bool empty() const { return rows_.empty(); }

 private:
  std::int64_t d_;
  const HeadFunction& base_;
  std::vector<double> v_;
  std::vector<ProbeRow> rows_;
};

// The keys that a row of a part sees.
Range keys_of(const Part& part, std::int64_t row) {
  const std::int64_t own = row - part.rows.first + part.keys.size() - part.rows.size();
  const std::int64_t end =
      part.causal ? std::clamp<std::int64_t>(own + 1, 0, part.keys.size()) : part.keys.size();
  const std::int64_t first = part.window > 0 ? std::clamp<std::int64_t>(own + 1 - part.window, 0, end) : 0;
  return {part.keys.first + first, part.keys.first + end};
}

// The least of a function with one valley between `low` and `high`, by golden section.
double least_between(const std::function<double(double)>& f, double low, double high) {
  constexpr double kGolden = 0.6180339887498949;
  double a = high - kGolden * (high - low), b = low + kGolden * (high - low), fa = f(a), fb = f(b);
  for (int step = 0; step < 60; ++step) {
    if (fa < fb) {
      high = b;
      b = a;
      fb = fa;
      fa = f(a = high - kGolden * (high - low));
    } else {
      low = a;
      a = b;
      fa = fb;
      fb = f(b = low + kGolden * (high - low));
    }
  }
  return 0.5 * (low + high);
}

// A few rows of the head, spread over it; nothing where the path does not give the tensor, or nothing is known of logits.
std::optional<LogitSearch> search_of(const Case& c, std::int64_t batch, std::int64_t head,
                                     const HeadFunction& base, const GotOf& got, TensorName tensor) {
  const AttentionShape& s = c.problem.shape;
  const std::vector<double> values = got(tensor, batch, head);
  if (values.empty() || base.elsewhere || base.softcap > 0 || base.layout != HeadLayout::kRight)
    return std::nullopt;
  const std::int64_t columns = tensor == TensorName::kLse ? 1 : s.d;
  std::vector<double> k(static_cast<std::size_t>(s.sk * s.d)), q(static_cast<std::size_t>(s.d));
  c.k.widen((batch * s.hkv + base.kv_head) * s.sk * s.d, k);
  LogitSearch search(c, batch, base);
  constexpr std::int64_t kRows = 32;
  for (const Part& part : base.parts) {
    if (part.reversed || !part.sink) return std::nullopt;
    const std::int64_t step = std::max<std::int64_t>(1, s.sq / kRows);
    const std::int64_t end = std::min(part.rows.end, static_cast<std::int64_t>(values.size()) / columns);
    for (std::int64_t row = part.rows.first + step / 2; row < end; row += step) {
      const Range keys = keys_of(part, row);
      if (keys.size() < 2) continue;
      c.q.widen(((batch * s.hq + head) * s.sq + row) * s.d, q);
      search.add(q, k, keys, {values.begin() + row * columns, values.begin() + (row + 1) * columns});
    }
  }
  if (search.empty()) return std::nullopt;
  return search;
}

// The power of two between 2^low and 2^high, by halves and then by golden section, at which f is least.
double least_power(const std::function<double(double)>& f, int low, int high) {
  double best = low, least = INFINITY;
  for (int half = 2 * low; half <= 2 * high; ++half) {
    const double power = 0.5 * half;
    const double sum = f(std::exp2(power));
    if (sum < least) {
      least = sum;
      best = power;
    }
  }
  return std::exp2(least_between([&](double power) { return f(std::exp2(power)); }, best - 0.5, best + 0.5));
}

}  // namespace

std::optional<std::int64_t> sink_source(const Case& c, std::int64_t batch, std::int64_t head,
                                        const HeadFunction& base, const GotOf& got) {
  HeadFunction sinkless = base;
  sinkless.sink = kNoSink;
  const HeadResult plain = evaluate(c, batch, head, sinkless, false);
  const std::vector<double> lse = got(TensorName::kLse, batch, head);
  const std::vector<double> out = got(TensorName::kOut, batch, head);
  const bool by_lse = !lse.empty();
  if (!by_lse && out.empty()) return std::nullopt;
  const auto d = static_cast<std::size_t>(c.problem.shape.d);
  std::vector<SinkRow> rows;
  for (std::size_t row = 0; row < (by_lse ? lse.size() : out.size() / d); ++row) {  // without padding
    SinkRow one{plain.lse[row], 0, 0, by_lse ? lse[row] : 0};
    for (std::size_t column = 0; column < d && !by_lse; ++column) {
      one.along += out[row * d + column] * plain.out[row * d + column];
      one.norm2 += plain.out[row * d + column] * plain.out[row * d + column];
    }
    if (std::isfinite(one.lse0) && !std::isnan(one.lse + one.along)) rows.push_back(one);
  }
  std::optional<std::int64_t> best;
  double least = INFINITY;
  // The next heads first: of equal sinks the nearest one counts.
  const std::int64_t heads = c.sinks.size();
  for (std::int64_t step = 1; step < heads; ++step) {
    const std::int64_t source = (head + step) % heads;
    const double sink = c.sinks.at(source);
    if (std::isnan(sink)) continue;
    const double sum = misfit(rows, sink, by_lse);
    if (sum < least) {
      least = sum;
      best = source;
    }
  }
  return best;
}

std::optional<double> estimated_scale(const Case& c, std::int64_t batch, std::int64_t head,
                                      const HeadFunction& base, const GotOf& got, TensorName tensor) {
  const std::optional<LogitSearch> search = search_of(c, batch, head, base, got, tensor);
  if (!search) return std::nullopt;
  const auto misfit = [&](double scale) { return search->misfit([scale](double x) { return scale * x; }); };
  constexpr int kMost = 6;  // powers of two either way
  const double up =
      base.scale * least_power([&](double by) { return misfit(by * base.scale); }, -kMost, kMost);
  const double down =
      -base.scale * least_power([&](double by) { return misfit(-by * base.scale); }, -kMost, kMost);
  return misfit(up) <= misfit(down) ? up : down;
}

std::optional<double> estimated_softcap(const Case& c, std::int64_t batch, std::int64_t head,
                                        const HeadFunction& base, const GotOf& got, TensorName tensor) {
  const std::optional<LogitSearch> search = search_of(c, batch, head, base, got, tensor);
  if (!search) return std::nullopt;
  return least_power(
      [&](double cap) {
        return search->misfit([&](double x) { return cap * std::tanh(base.scale * x / cap); });
      },
      -3, 9);
}

}  // namespace sinkscope
