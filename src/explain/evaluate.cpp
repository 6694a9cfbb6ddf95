// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <random>

#include "src/explain/head_function.hpp"
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

std::int64_t source_row(const Part& part, std::int64_t row) {
  return part.reversed ? part.rows.end - 1 - row : part.rows.first + row;
}

double log_add(double a, double b) {
  const double most = std::max(a, b);
  if (std::isinf(most)) return most;
  return most + std::log(std::exp(a - most) + std::exp(b - most));
}

// exp(a - b), a part's share of a row; 1 where both are the same infinity.
double share_of(double a, double b) {
  return a == b ? 1 : std::exp(a - b);
}

class Evaluation {
 public:
  Evaluation(const Case& c, std::int64_t batch, std::int64_t head, const HeadFunction& f)
      : s_(c.problem.shape), f_(f) {
    rounding_ = {unit_roundoff(s_.dtype), underflow_unit(s_.dtype)};
    const std::int64_t query = batch * s_.hq + head;
    const std::int64_t kv = batch * s_.hkv + f.kv_head;
    q_ = rows_of(c.q, query, s_.sq, s_.d);
    k_ = rows_of(c.k, kv, s_.sk, s_.d);
    v_ = rows_of(c.v, kv, s_.sk, s_.d);
    const bool padded = f.padding != PaddingRows::kLeftOut && c.padded_dout.given();
    dout_ = rows_of(padded ? c.padded_dout : c.dout, query, s_.sq, s_.d);
    if (!f.drops_dlse) dlse_ = rows_of(padded ? c.padded_dlse : c.dlse, query, s_.sq, 1);
  }

  // Gradients come from the rows of `rows` alone.
  HeadResult run(bool backward, Range rows) {
    backward = backward && !dout_.empty();
    allocate(backward);
    silence(rows);
    std::vector<Truth> forwards;
    // Rows of one part and with their own constants need no look at the forward before the backward.
    const bool at_once = backward && f_.parts.size() == 1 && f_.backward == nullptr;
    for (const Part& part : f_.parts) {
      if (at_once)
        forwards.push_back(run_part(part, taken(dout_, part.rows, s_.d, part.reversed),
                                    taken(dlse_, dlse_.empty() ? Range{} : part.rows, 1, part.reversed)));
      else
        forwards.push_back(run_part(part, {}, {}));
    }
    merge(forwards);
    if (backward) {
      add_gradients(forwards, at_once);
      for (std::size_t i = 0; i < r_.dq.size(); ++i)
        r_.sigma_dq[i] = std::sqrt(r_.sigma_dq[i] + r_.dq[i] * r_.dq[i]);
    }
    hand_out_lse();
    return std::move(r_);
  }

 private:
  void allocate(bool backward) {
    const auto rows = static_cast<std::size_t>(s_.sq), keys = static_cast<std::size_t>(s_.sk);
    const auto d = static_cast<std::size_t>(s_.d);
    for (auto* m : {&r_.out, &r_.sigma_out}) m->assign(rows * d, 0);
    r_.lse.assign(rows, kNoSink);
    for (auto* m : {&r_.sigma_lse, &r_.p, &r_.delta}) m->assign(rows, 0);
    if (!backward) return;
    for (auto* m : {&r_.dq, &r_.sigma_dq}) m->assign(rows * d, 0);
    for (auto* m : {&r_.dk, &r_.dv, &r_.sigma2_dk, &r_.sigma2_dv}) m->assign(keys * d, 0);
    for (auto* m : {&r_.dsink, &r_.sigma2_dsink}) m->assign(rows, 0);
  }

  void silence(Range rows) {
    for (std::int64_t row = 0; row < s_.sq && !dout_.empty(); ++row) {
      if (rows.contains(row)) continue;
      std::fill_n(dout_.begin() + row * s_.d, s_.d, 0.0);
      if (!dlse_.empty()) dlse_[static_cast<std::size_t>(row)] = 0;
    }
  }

  Truth run_part(const Part& part, const std::vector<double>& dout, const std::vector<double>& dlse,
                 double scale_factor = 1, bool sigma = true) const {
    reference::Problem problem;
    problem.sq = part.rows.size();
    problem.sk = part.keys.size();
    problem.d = s_.d;
    problem.causal = part.causal;
    problem.window = part.window;
    problem.scale = f_.scale * scale_factor;
    const std::vector<double> q = taken(q_, part.rows, s_.d, part.reversed);
    const std::vector<double> k = taken(k_, part.keys, s_.d, part.reversed);
    const std::vector<double> v = taken(v_, part.keys, s_.d, part.reversed);
    std::vector<double> sinks;
    if (part.sink && f_.sink != kNoSink && scale_factor == 1) sinks = {f_.sink};
    const reference::Inputs inputs = {q, k, v, sinks, dout, dlse};
    if (f_.softcap > 0) return evaluate_softcap(problem, inputs, rounding_, f_.softcap);
    return reference::attention(problem, inputs, rounding_, {1, sigma});
  }

  // One softmax over the keys of all parts of a row.
  void merge(const std::vector<Truth>& forwards) {
    for_rows(forwards, [&](const Part&, const Truth& t, std::size_t from, std::size_t row) {
      r_.lse[row] = log_add(r_.lse[row], t.value.lse[from]);
    });
    const auto d = static_cast<std::size_t>(s_.d);
    for_rows(forwards, [&](const Part&, const Truth& t, std::size_t from, std::size_t row) {
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

  void add_gradients(const std::vector<Truth>& forwards, bool have_gradients) {
    const std::vector<double> p_ds = f_.needs_p_ds ? probabilities_by_ds() : std::vector<double>();
    std::vector<RowRule> rules(r_.lse.size());
    for (std::size_t row = 0; row < rules.size(); ++row) {
      const double dlse = dlse_.empty() ? 0 : dlse_[row];
      const RowState state{r_.lse[row], r_.p[row], r_.delta[row],
                           dlse,        f_.sink,   p_ds.empty() ? 0 : p_ds[row]};
      rules[row] = f_.backward != nullptr ? f_.backward(state)
                                          : RowRule{1, dlse - state.delta, state.p, dlse - state.delta};
    }
    for (std::size_t i = 0; i < f_.parts.size(); ++i) {
      const Part& part = f_.parts[i];
      const Truth made = have_gradients ? Truth() : gradients_of(part, forwards[i], rules);
      add_part(part, have_gradients ? forwards[i] : made, rules);
      add_dout_spread(part, forwards[i], rules);
    }
  }

  // The reference makes dS of this part from its own P, dO and dLSE. A row's weight goes into dO, and the dLSE that is
  // handed in moves its Delta to the wanted constant.
  Truth gradients_of(const Part& part, const Truth& forward, const std::vector<RowRule>& rules) const {
    const auto d = static_cast<std::size_t>(s_.d), count = static_cast<std::size_t>(part.rows.size());
    std::vector<double> dout(count * d), dlse(count);
    for (std::size_t from = 0; from < count; ++from) {
      const auto row = static_cast<std::size_t>(source_row(part, static_cast<std::int64_t>(from)));
      const double w = rules[row].weight * share_of(forward.value.lse[from], r_.lse[row]);
      double delta = 0;
      for (std::size_t column = 0; column < d; ++column) {
        dout[from * d + column] = w * dout_[row * d + column];
        delta += dout_[row * d + column] * forward.value.out[from * d + column];
      }
      dlse[from] = w * (delta + rules[row].constant);
    }
    return run_part(part, dout, dlse);
  }

  void add_part(const Part& part, const Truth& t, const std::vector<RowRule>& rules) {
    const auto d = static_cast<std::size_t>(s_.d), count = static_cast<std::size_t>(part.rows.size());
    add_delta_spread(part, t, rules);
    for (std::size_t from = 0; from < count; ++from) {
      const auto row = static_cast<std::size_t>(source_row(part, static_cast<std::int64_t>(from)));
      for (std::size_t column = 0; column < d; ++column) {
        const double dq = t.value.dq[from * d + column], sigma = t.sigma.dq[from * d + column];
        r_.dq[row * d + column] += dq;
        r_.sigma_dq[row * d + column] += sigma * sigma - dq * dq;
      }
      if (part.sink) add_sink_term(row, rules[row], t.sigma.delta[from], t.sigma.lse[from], part.rows.size());
    }
    for (std::int64_t from = 0; from < part.keys.size(); ++from) {
      const std::int64_t key = part.reversed ? part.keys.end - 1 - from : part.keys.first + from;
      for (std::size_t column = 0; column < d; ++column) {
        const std::size_t i = static_cast<std::size_t>(from) * d + column;
        const std::size_t to = static_cast<std::size_t>(key) * d + column;
        r_.dk[to] += f_.kv_weight * t.value.dk[i];
        r_.dv[to] += f_.kv_weight * t.value.dv[i];
        const double w2 = f_.kv_weight * f_.kv_weight;
        r_.sigma2_dk[to] += w2 * (t.sigma.dk[i] * t.sigma.dk[i] - t.value.dk[i] * t.value.dk[i]);
        r_.sigma2_dv[to] += w2 * (t.sigma.dv[i] * t.sigma.dv[i] - t.value.dv[i] * t.value.dv[i]);
      }
    }
  }

  // Where a constant holds Delta more than once, so it does Delta's rounding: what that adds to the sigmas of dq and dk
  // is what a dLSE of this size, alone, makes of them.
  void add_delta_spread(const Part& part, const Truth& t, const std::vector<RowRule>& rules) {
    const auto d = static_cast<std::size_t>(s_.d), count = static_cast<std::size_t>(part.rows.size());
    std::vector<double> spread(count);
    bool any = false;
    for (std::size_t from = 0; from < count; ++from) {
      const RowRule& rule =
          rules[static_cast<std::size_t>(source_row(part, static_cast<std::int64_t>(from)))];
      if (!(rule.delta_gain > 1)) continue;
      spread[from] = std::sqrt(rule.delta_gain * rule.delta_gain - 1) * t.sigma.delta[from];
      any = true;
    }
    if (!any) return;
    const Truth alone = run_part(part, std::vector<double>(count * d), spread);
    for (std::size_t i = 0; i < count * d; ++i) {
      const auto row = static_cast<std::size_t>(source_row(part, static_cast<std::int64_t>(i / d)));
      r_.sigma_dq[row * d + i % d] += alone.value.dq[i] * alone.value.dq[i];
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(part.keys.size()) * d; ++i) {
      const std::int64_t from = static_cast<std::int64_t>(i / d);
      const std::int64_t key = part.reversed ? part.keys.end - 1 - from : part.keys.first + from;
      r_.sigma2_dk[static_cast<std::size_t>(key) * d + i % d] +=
          f_.kv_weight * f_.kv_weight *
          (alone.sigma.dk[i] * alone.sigma.dk[i] - alone.value.dk[i] * alone.value.dk[i]);
    }
  }

  // Where dO times something was rounded once more, every element of it is off by chance: what dO with random signs makes of
  // dq, dk and dv, mean square over each row of theirs.
  void add_dout_spread(const Part& part, const Truth& forward, const std::vector<RowRule>& rules) {
    if (std::none_of(rules.begin(), rules.end(), [](const RowRule& rule) { return rule.rounds_dout; }))
      return;
    const auto d = static_cast<std::size_t>(s_.d), count = static_cast<std::size_t>(part.rows.size());
    std::vector<double> dout(count * d), dlse(count);
    std::mt19937 bits(1);
    for (std::size_t from = 0; from < count; ++from) {
      const auto row = static_cast<std::size_t>(source_row(part, static_cast<std::int64_t>(from)));
      const double w = rules[row].weight * share_of(forward.value.lse[from], r_.lse[row]);
      double delta = 0, delta_of_part = 0;
      for (std::size_t column = 0; column < d; ++column) {
        const double signed_dout = (bits() & 1U) != 0 ? dout_[row * d + column] : -dout_[row * d + column];
        dout[from * d + column] = w * signed_dout;
        delta += signed_dout * r_.out[row * d + column];
        delta_of_part += signed_dout * forward.value.out[from * d + column];
      }
      dlse[from] = w * (delta_of_part - rules[row].delta_gain * delta);
    }
    const Truth alone = run_part(part, dout, dlse, 1, false);
    const auto mean_square = [d](const std::vector<double>& values, std::size_t row) {
      double sum = 0;
      for (std::size_t i = row * d; i < (row + 1) * d; ++i) sum += values[i] * values[i];
      return sum / static_cast<double>(d);
    };
    for (std::size_t from = 0; from < count; ++from) {
      const auto row = static_cast<std::size_t>(source_row(part, static_cast<std::int64_t>(from)));
      const double more = mean_square(alone.value.dq, from);
      for (std::size_t i = row * d; i < (row + 1) * d; ++i) r_.sigma_dq[i] += more;
    }
    for (std::size_t from = 0; from < static_cast<std::size_t>(part.keys.size()); ++from) {
      const std::size_t key =
          static_cast<std::size_t>(part.reversed ? part.keys.end - 1 - static_cast<std::int64_t>(from)
                                                 : part.keys.first + static_cast<std::int64_t>(from));
      const double w2 = f_.kv_weight * f_.kv_weight;
      const double more_dk = w2 * mean_square(alone.value.dk, from),
                   more_dv = w2 * mean_square(alone.value.dv, from);
      for (std::size_t i = key * d; i < (key + 1) * d; ++i)
        r_.sigma2_dk[i] += more_dk, r_.sigma2_dv[i] += more_dv;
    }
  }

  // Eq. 13 and 20 of the reference, row by row.
  void add_sink_term(std::size_t row, const RowRule& rule, double sigma_delta, double sigma_lse,
                     std::int64_t rows) {
    const double rho = 0x1p-24 / rounding_.unit_roundoff;
    const double term = f_.sink_weight * rule.sink_p * rule.sink_constant;
    const double spread = f_.sink_weight * rule.sink_p * rule.sink_delta_gain * sigma_delta;
    const double lse_part = rho * rho * (sigma_lse * sigma_lse + 1 + static_cast<double>(rows) / 16);
    r_.dsink[row] += std::isnan(term) ? 0 : term;
    r_.sigma2_dsink[row] += spread * spread + (std::isnan(term) ? 0 : term * term * lse_part);
  }

  // sum_j P_ij dS_ij = sum_j P_ij^2 (dP_ij - Delta_i + dLSE_i). P^2 is a softmax of twice the logits, not normalised.
  std::vector<double> probabilities_by_ds() const {
    std::vector<double> sums(r_.lse.size());
    for (const Part& part : f_.parts) {
      const Truth twice = run_part(part, {}, {}, 2);
      for (std::size_t from = 0; from < static_cast<std::size_t>(part.rows.size()); ++from) {
        const auto row = static_cast<std::size_t>(source_row(part, static_cast<std::int64_t>(from)));
        double dp = 0;
        for (std::size_t column = 0; column < static_cast<std::size_t>(s_.d); ++column) {
          dp += dout_[row * static_cast<std::size_t>(s_.d) + column] *
                twice.value.out[from * static_cast<std::size_t>(s_.d) + column];
        }
        const double squares = std::exp(twice.value.lse[from] - 2 * r_.lse[row]);
        const double dlse = dlse_.empty() ? 0 : dlse_[row];
        if (squares > 0) sums[row] += squares * (dp - r_.delta[row] + dlse);
      }
    }
    return sums;
  }

  void hand_out_lse() {
    if (f_.lse_of_keys) take_lse_of_keys();
    for (double& lse : r_.lse) lse *= f_.lse_factor;
  }

  // From the keys themselves: LSE + log(1 - p) cancels where the sink takes nearly all, and has another sigma.
  void take_lse_of_keys() {
    std::fill(r_.lse.begin(), r_.lse.end(), kNoSink);
    std::fill(r_.sigma_lse.begin(), r_.sigma_lse.end(), 0);
    std::vector<Truth> forwards;
    for (Part part : f_.parts) {
      part.sink = false;
      forwards.push_back(run_part(part, {}, {}));
    }
    for_rows(forwards, [&](const Part&, const Truth& t, std::size_t from, std::size_t row) {
      r_.lse[row] = log_add(r_.lse[row], t.value.lse[from]);
      r_.sigma_lse[row] = std::max(r_.sigma_lse[row], t.sigma.lse[from]);
    });
  }

  template <typename Body>
  void for_rows(const std::vector<Truth>& forwards, const Body& body) const {
    for (std::size_t i = 0; i < f_.parts.size(); ++i) {
      for (std::int64_t from = 0; from < f_.parts[i].rows.size(); ++from) {
        body(f_.parts[i], forwards[i], static_cast<std::size_t>(from),
             static_cast<std::size_t>(source_row(f_.parts[i], from)));
      }
    }
  }

  const AttentionShape& s_;
  const HeadFunction& f_;
  reference::Rounding rounding_;
  std::vector<double> q_, k_, v_, dout_, dlse_;
  HeadResult r_;
};

// Takes what belongs to `rows` from `from`; gradients of keys, which all rows share, are added.
void join_rows(HeadResult& into, const HeadResult& from, Range rows, std::int64_t d) {
  const auto copy = [&](std::vector<double> HeadResult::*member, std::int64_t columns) {
    if ((from.*member).empty()) return;
    std::copy((from.*member).begin() + rows.first * columns, (from.*member).begin() + rows.end * columns,
              (into.*member).begin() + rows.first * columns);
  };
  for (const auto member : {&HeadResult::out, &HeadResult::sigma_out, &HeadResult::dq, &HeadResult::sigma_dq})
    copy(member, d);
  for (const auto member : {&HeadResult::lse, &HeadResult::sigma_lse, &HeadResult::p, &HeadResult::delta,
                            &HeadResult::dsink, &HeadResult::sigma2_dsink}) {
    copy(member, 1);
  }
  for (const auto member :
       {&HeadResult::dk, &HeadResult::dv, &HeadResult::sigma2_dk, &HeadResult::sigma2_dv}) {
    for (std::size_t i = 0; i < (from.*member).size(); ++i) (into.*member)[i] += (from.*member)[i];
  }
}

}  // namespace

HeadResult evaluate(const Case& c, std::int64_t batch, std::int64_t head, const HeadFunction& function,
                    bool backward) {
  const AttentionShape& s = c.problem.shape;
  HeadResult result = Evaluation(c, batch, head, function).run(backward, function.rows);
  if (function.padding == PaddingRows::kInDsinks && backward) {
    HeadFunction without = function;
    without.padding = PaddingRows::kLeftOut;
    HeadResult others = Evaluation(c, batch, head, without).run(backward, function.rows);
    others.dsink = std::move(result.dsink);
    others.sigma2_dsink = std::move(result.sigma2_dsink);
    result = std::move(others);
  }
  if (!function.elsewhere) return result;
  for (const Range others : {Range{0, function.rows.first}, Range{function.rows.end, s.sq}}) {
    if (others.size() == 0) continue;
    HeadFunction rest = *function.elsewhere;
    rest.rows = others;
    rest.elsewhere = nullptr;
    join_rows(result, Evaluation(c, batch, head, rest).run(backward, others), others, s.d);
  }
  return result;
}

}  // namespace sinkscope
