// SPDX-License-Identifier: Apache-2.0
// Mistakes of the backward alone: the constants of its rows, and the sink's gradient.
#include <cmath>

#include "fmt/format.h"

#include "src/explain/cause.hpp"

namespace sinkscope {
namespace {

const double kLog2E = 1 / std::log(2.0);

std::optional<std::string> needs_backward(const Case& c) {
  if (c.dout.given()) return std::nullopt;
  return "the case has no backward";
}

std::optional<std::string> needs_sinks_and_backward(const Case& c) {
  if (!c.sinks.given()) return "the case has no sink";
  return needs_backward(c);
}

std::optional<std::string> needs_lse_gradient(const Case& c) {
  if (!c.sinks.given() && !c.dlse.given()) return "the case has neither a sink nor a gradient of the LSE";
  return needs_backward(c);
}

std::optional<std::string> needs_batch(const Case& c) {
  if (c.problem.shape.b == 1) return "the batch has one entry";
  return needs_sinks_and_backward(c);
}

RowRule right(const RowState& row) {
  return {1, row.dlse - row.delta, row.p, row.dlse - row.delta};
}

// dO . O of the O before the sink: O / (1 - p).
double delta_without_sink(const RowState& row) {
  return row.p < 1 ? row.delta / (1 - row.p) : row.delta;
}

RowRule rescaled(const RowState& row) {
  RowRule rule = right(row);
  rule.constant = row.dlse - delta_without_sink(row);
  if (row.p < 1) rule.delta_gain = 1 / (1 - row.p);
  return rule;
}

// The same by a backward of the keys alone, which is given dO (1 - p).
RowRule rescaled_dout(const RowState& row) {
  RowRule rule = rescaled(row);
  rule.rounds_dout = true;
  return rule;
}

RowRule without_dlse(const RowState& row) {
  RowRule rule = right(row);
  rule.constant = -row.delta;
  return rule;
}

RowRule uncorrected(const RowState& row) {
  RowRule rule = rescaled(row);
  rule.sink_constant = rule.constant;
  rule.sink_delta_gain = rule.delta_gain;
  return rule;
}

// P is made again from an LSE that is too small by -log(1 - p).
RowRule from_lse_of_keys(const RowState& row) {
  RowRule rule = right(row);
  if (row.p < 1) rule.weight = 1 / (1 - row.p);
  return rule;
}

RowRule from_lse_of_keys_sink_too(const RowState& row) {
  RowRule rule = from_lse_of_keys(row);
  rule.sink_p *= rule.weight;
  return rule;
}

// ... or from one in the other base. What overflows is past explaining.
RowRule from_factor(const RowState& row, double factor, bool sink_too) {
  RowRule rule = right(row);
  constexpr double kMost = 80;
  if (std::isfinite(row.lse)) rule.weight = std::exp(std::min(kMost, row.lse * (1 - factor)));
  if (sink_too) rule.sink_p *= rule.weight;
  return rule;
}
RowRule from_log2(const RowState& row) {
  return from_factor(row, kLog2E, false);
}
RowRule from_log2_sink_too(const RowState& row) {
  return from_factor(row, kLog2E, true);
}
RowRule from_ln(const RowState& row) {
  return from_factor(row, 1 / kLog2E, false);
}
RowRule from_ln_sink_too(const RowState& row) {
  return from_factor(row, 1 / kLog2E, true);
}

RowRule sink_from_ds(const RowState& row) {
  RowRule rule = right(row);
  rule.sink_constant = -row.p_ds;
  return rule;
}

Hypothesis with_rule(const Cause& cause, BackwardRule rule, const char* variant = "") {
  return hypothesis(cause, [rule, variant](HeadFunction& f, std::int64_t, std::int64_t) {
    if (f.backward != nullptr) return false;
    f.backward = rule;
    f.key += variant;
    return true;
  });
}

std::vector<Hypothesis> dlse_dropped(const Cause& cause, const Probe& probe) {
  std::vector<Hypothesis> all;
  if (probe.c.dlse.given()) {
    all.push_back(hypothesis(cause, [](HeadFunction& f, std::int64_t, std::int64_t) {
      if (f.drops_dlse) return false;
      return f.drops_dlse = true;
    }));
    all.push_back(with_rule(cause, without_dlse, "(dS)"));
  }
  if (probe.c.sinks.given()) {
    all.push_back(with_rule(cause, rescaled, "(rescaled)"));
    all.push_back(with_rule(cause, rescaled_dout, "(rescaled dO)"));
  }
  return all;
}

std::vector<Hypothesis> delta_uncorrected(const Cause& cause, const Probe&) {
  return {with_rule(cause, uncorrected)};
}

Hypothesis handing_out(const Hypothesis& inner, double lse_factor, bool of_keys) {
  Hypothesis both = inner;
  both.apply = [inner = inner.apply, lse_factor, of_keys](HeadFunction& f, std::int64_t batch,
                                                          std::int64_t head) {
    if (inner && !inner(f, batch, head)) return false;
    f.lse_factor *= lse_factor;
    f.lse_of_keys = f.lse_of_keys || of_keys;
    f.key += "(handed out)";
    return true;
  };
  return both;
}

Hypothesis handed_out_only(const Cause& cause, double lse_factor, bool of_keys) {
  return hypothesis(cause, [=](HeadFunction& f, std::int64_t, std::int64_t) {
    f.lse_factor *= lse_factor;
    f.lse_of_keys = f.lse_of_keys || of_keys;
    f.key += "(lse alone)";
    return true;
  });
}

// The LSE as it is handed out, as the backward reads it, or both.
std::vector<Hypothesis> lse_without_sink(const Cause& cause, const Probe&) {
  const Hypothesis plain = with_rule(cause, from_lse_of_keys);
  const Hypothesis too = with_rule(cause, from_lse_of_keys_sink_too, "(dsink too)");
  return {plain, too, handing_out(plain, 1, true), handing_out(too, 1, true),
          handed_out_only(cause, 1, true)};
}

std::vector<Hypothesis> lse_log2(const Cause& cause, const Probe&) {
  const Hypothesis up = with_rule(cause, from_log2), down = with_rule(cause, from_ln, "(ln)");
  return {up,
          with_rule(cause, from_log2_sink_too, "(dsink too)"),
          down,
          with_rule(cause, from_ln_sink_too, "(ln, dsink too)"),
          handing_out(up, kLog2E, false),
          handed_out_only(cause, kLog2E, false)};
}

std::vector<Hypothesis> weighted(const Cause& cause, double weight) {
  return {hypothesis(cause, [weight](HeadFunction& f, std::int64_t, std::int64_t) {
    if (f.sink_of < 0) return false;
    f.sink_weight *= weight;
    return true;
  })};
}

std::vector<Hypothesis> dsink_missing(const Cause& cause, const Probe&) {
  return weighted(cause, 0);
}
std::vector<Hypothesis> dsink_sign(const Cause& cause, const Probe&) {
  return weighted(cause, -1);
}

std::vector<Hypothesis> dsink_batch(const Cause& cause, const Probe& probe) {
  std::vector<Hypothesis> entries;
  for (std::int64_t entry = 0; entry < probe.c.problem.shape.b; ++entry) {
    entries.push_back(hypothesis(cause, [entry](HeadFunction& f, std::int64_t batch, std::int64_t) {
      if (f.sink_of < 0) return false;
      if (batch != entry) f.sink_weight = 0;
      f.key += fmt::format("({})", entry);
      f.note = fmt::format("only batch entry {} counts", entry);
      return true;
    }));
  }
  return entries;
}

std::vector<Hypothesis> dsink_from_ds(const Cause& cause, const Probe&) {
  return {hypothesis(cause, [](HeadFunction& f, std::int64_t, std::int64_t) {
    if (f.backward != nullptr || f.sink_of < 0) return false;
    f.backward = sink_from_ds;
    f.needs_p_ds = true;
    return true;
  })};
}

std::optional<std::string> needs_padding(const Case& c) {
  if (!c.sinks.given()) return "the case has no sink";
  if (c.problem.shape.seqlens.empty()) return "the case has no rows of padding";
  if (c.padded_dout.given()) return std::nullopt;
  return "dout is zero in every row of padding";
}

// In the sink's gradient alone, or in those of keys and values as well.
std::vector<Hypothesis> dsink_padding(const Cause& cause, const Probe&) {
  std::vector<Hypothesis> both;
  for (const PaddingRows padding : {PaddingRows::kInDsinks, PaddingRows::kInGradients}) {
    both.push_back(hypothesis(cause, [padding](HeadFunction& f, std::int64_t, std::int64_t) {
      if (f.padding != PaddingRows::kLeftOut) return false;
      f.padding = padding;
      return true;
    }));
  }
  return both;
}

}  // namespace

std::vector<Cause> backward_causes() {
  return {
      {"dsink_missing", "the sink gets no gradient",
       "return the sink's gradient from the backward: -sum p Delta",
       "vllm-flash-attn3 returns None for s_aux; FlashAttention-4 did before August 2026",
       Stage::kSinkGradient, 0, needs_sinks_and_backward, dsink_missing},
      {"dlse_dropped", "the gradient through the LSE is dropped",
       "add dLSE to -Delta in the backward, or feed the backward the O and LSE that include the sink",
       "O sigmoid(lse - s) through an autograd whose LSE has no gradient (torchtitan 4796)", Stage::kBackward,
       0, needs_lse_gradient, dlse_dropped},
      {"delta_uncorrected", "Delta is taken from the O before the sink, in the sink's gradient too",
       "take Delta = dO . O from the O that includes the sink", "backwards that are fed the kernel's own O",
       Stage::kBackward, 0, needs_sinks_and_backward, delta_uncorrected},
      {"lse_without_sink", "the LSE leaves the sink out", "save and use the LSE that includes the sink",
       "gpt-oss's Triton kernel stores it so", Stage::kBackward, 0, needs_sinks_and_backward,
       lse_without_sink},
      {"lse_log2", "the LSE is in the other base", "convert between log2 and ln where the LSE changes hands",
       "FlexAttention's flash backend (pytorch 181645)", Stage::kBackward, 0, nullptr, lse_log2},
      {"dsink_sign", "the sink's gradient has the wrong sign", "dsink = sum p (dLSE - Delta)",
       "a Delta that is stored negated", Stage::kSinkGradient, 0, needs_sinks_and_backward, dsink_sign},
      {"dsink_from_ds", "the sink's gradient is made from dS in place of dP", "dsink = sum p (dLSE - Delta)",
       "a published formula, as printed (Unlocking Agentic RL Training for GPT-OSS)", Stage::kSinkGradient, 0,
       needs_sinks_and_backward, dsink_from_ds},
      {"dsink_batch", "the sink's gradient is not summed over the batch",
       "sum dsinks over rows, documents and batch", "a gradient of [b, h] that is sliced",
       Stage::kSinkGradient, 1, needs_batch, dsink_batch},
      {"dsink_padding", "rows of padding are counted in the sink's gradient",
       "leave rows at and after seqlens out of the sum, or make their dO zero",
       "a sum over a padded batch of what a kernel without padding left there", Stage::kBackward, 0,
       needs_padding, dsink_padding},
  };
}

}  // namespace sinkscope
