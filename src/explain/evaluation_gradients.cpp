// SPDX-License-Identifier: Apache-2.0
// What a backward makes of the rows: dS_ij = weight P_ij (dP_ij + constant), by the reference.
#include <algorithm>
#include <cmath>
#include <random>

#include "src/explain/evaluation.hpp"

namespace sinkscope {

void Evaluation::add_gradients() {
  const std::vector<double> p_ds = f_->needs_p_ds ? probabilities_by_ds() : std::vector<double>();
  std::vector<RowRule> rules(r_.lse.size());
  for (std::size_t row = 0; row < rules.size(); ++row) {
    const double dlse = dlse_.empty() ? 0 : dlse_[row];
    const RowState state{r_.lse[row], r_.p[row], r_.delta[row], dlse, f_->sink, p_ds.empty() ? 0 : p_ds[row]};
    rules[row] = f_->backward != nullptr ? f_->backward(state)
                                         : RowRule{1, dlse - state.delta, state.p, dlse - state.delta};
  }
  for (std::size_t i = 0; i < f_->parts.size(); ++i) {
    const Part& part = f_->parts[i];
    if (at_once_ && f_->backward == nullptr) {
      add_part(part, forwards_[i], rules);
      continue;
    }
    Gradients& made = gradients_of(i, rules);
    add_delta_spread(part, made, rules);
    add_part(part, made.truth, rules);
    add_dout_spread(part, forwards_[i], rules);
  }
  for (std::size_t i = 0; i < r_.dq.size(); ++i)
    r_.sigma_dq[i] = std::sqrt(r_.sigma_dq[i] + r_.dq[i] * r_.dq[i]);
}

// The reference makes dS of this part from its own P, dO and dLSE. A row's weight goes into dO, and the dLSE that is
// handed in moves its Delta to the wanted constant.
Evaluation::Gradients& Evaluation::gradients_of(std::size_t part_index, const std::vector<RowRule>& rules) {
  std::vector<Gradients>& made = made_[part_index];
  const Part& part = f_->parts[part_index];
  const Truth& forward = forwards_[part_index];
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
  for (Gradients& before : made) {
    if (before.dout == dout && before.dlse == dlse) return before;
  }
  Truth truth = run_part(part, dout, dlse);
  made.push_back({std::move(dout), std::move(dlse), std::move(truth), {}, {}});
  return made.back();
}

void Evaluation::add_part(const Part& part, const Truth& t, const std::vector<RowRule>& rules) {
  const auto d = static_cast<std::size_t>(s_.d), count = static_cast<std::size_t>(part.rows.size());
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
    const std::int64_t key = source_key(part, from);
    for (std::size_t column = 0; column < d; ++column) {
      const std::size_t i = static_cast<std::size_t>(from) * d + column;
      const std::size_t to = static_cast<std::size_t>(key) * d + column;
      r_.dk[to] += f_->kv_weight * t.value.dk[i];
      r_.dv[to] += f_->kv_weight * t.value.dv[i];
      const double w2 = f_->kv_weight * f_->kv_weight;
      r_.sigma2_dk[to] += w2 * (t.sigma.dk[i] * t.sigma.dk[i] - t.value.dk[i] * t.value.dk[i]);
      r_.sigma2_dv[to] += w2 * (t.sigma.dv[i] * t.sigma.dv[i] - t.value.dv[i] * t.value.dv[i]);
    }
  }
}

// Where a constant holds Delta more than once, so it does Delta's rounding: what that adds to the sigmas of dq and dk
// is what a dLSE of this size, alone, makes of them.
void Evaluation::add_delta_spread(const Part& part, Gradients& made, const std::vector<RowRule>& rules) {
  const auto d = static_cast<std::size_t>(s_.d), count = static_cast<std::size_t>(part.rows.size());
  std::vector<double> spread(count);
  bool any = false;
  for (std::size_t from = 0; from < count; ++from) {
    const RowRule& rule = rules[static_cast<std::size_t>(source_row(part, static_cast<std::int64_t>(from)))];
    if (!(rule.delta_gain > 1)) continue;
    spread[from] = std::sqrt(rule.delta_gain * rule.delta_gain - 1) * made.truth.sigma.delta[from];
    any = true;
  }
  if (!any) return;
  if (!made.of_spread || made.spread != spread) {
    made.of_spread = run_part(part, std::vector<double>(count * d), spread);
    made.spread = std::move(spread);
  }
  const Truth& alone = *made.of_spread;
  for (std::size_t i = 0; i < count * d; ++i) {
    const auto row = static_cast<std::size_t>(source_row(part, static_cast<std::int64_t>(i / d)));
    r_.sigma_dq[row * d + i % d] += alone.value.dq[i] * alone.value.dq[i];
  }
  for (std::size_t i = 0; i < static_cast<std::size_t>(part.keys.size()) * d; ++i) {
    const std::int64_t from = static_cast<std::int64_t>(i / d);
    const std::int64_t key = source_key(part, from);
    r_.sigma2_dk[static_cast<std::size_t>(key) * d + i % d] +=
        f_->kv_weight * f_->kv_weight *
        (alone.sigma.dk[i] * alone.sigma.dk[i] - alone.value.dk[i] * alone.value.dk[i]);
  }
}

// Where dO times something was rounded once more, every element of it is off by chance: what dO with random signs makes of
// dq, dk and dv, mean square over each row of theirs.
void Evaluation::add_dout_spread(const Part& part, const Truth& forward, const std::vector<RowRule>& rules) {
  if (std::none_of(rules.begin(), rules.end(), [](const RowRule& rule) { return rule.rounds_dout; })) return;
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
    const std::size_t key = static_cast<std::size_t>(source_key(part, static_cast<std::int64_t>(from)));
    const double w2 = f_->kv_weight * f_->kv_weight;
    const double more_dk = w2 * mean_square(alone.value.dk, from),
                 more_dv = w2 * mean_square(alone.value.dv, from);
    for (std::size_t i = key * d; i < (key + 1) * d; ++i)
      r_.sigma2_dk[i] += more_dk, r_.sigma2_dv[i] += more_dv;
  }
}

// Eq. 13 and 20 of the reference, row by row.
void Evaluation::add_sink_term(std::size_t row, const RowRule& rule, double sigma_delta, double sigma_lse,
                               std::int64_t rows) {
  const double rho = 0x1p-24 / rounding_.unit_roundoff;
  const double term = f_->sink_weight * rule.sink_p * rule.sink_constant;
  const double spread = f_->sink_weight * rule.sink_p * rule.sink_delta_gain * sigma_delta;
  const double lse_part = rho * rho * (sigma_lse * sigma_lse + 1 + static_cast<double>(rows) / 16);
  r_.dsink[row] += std::isnan(term) ? 0 : term;
  r_.sigma2_dsink[row] += spread * spread + (std::isnan(term) ? 0 : term * term * lse_part);
}

// sum_j P_ij dS_ij = sum_j P_ij^2 (dP_ij - Delta_i + dLSE_i). P^2 is a softmax of twice the logits, not normalised.
std::vector<double> Evaluation::probabilities_by_ds() const {
  std::vector<double> sums(r_.lse.size());
  for (const Part& part : f_->parts) {
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

}  // namespace sinkscope
