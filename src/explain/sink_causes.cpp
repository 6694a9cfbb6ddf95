// SPDX-License-Identifier: Apache-2.0
// Mistakes with the sink's logit.
#include <cmath>

#include "fmt/format.h"

#include "src/explain/cause.hpp"
#include "src/explain/estimate.hpp"

namespace sinkscope {
namespace {

const double kLn2 = std::log(2.0);

std::optional<std::string> needs_sinks(const Case& c) {
  if (c.sinks.given()) return std::nullopt;
  return "the case has no sink";
}

// Of equal sinks too: their gradients differ.
std::optional<std::string> needs_two_sinks(const Case& c) {
  if (c.sinks.given() && c.sinks.size() > 1) return std::nullopt;
  return "the case has no two sinks";
}

std::optional<std::string> needs_long_sinks(const Case& c) {
  for (std::int64_t h = 0; c.sinks.given() && h < c.sinks.size(); ++h) {
    if (widen_bf16(round_to_bf16(c.sinks.at(h))) != c.sinks.at(h)) return std::nullopt;
  }
  return "every sink is a bf16 number";
}

std::vector<Hypothesis> ignored(const Cause& cause, const Probe&) {
  return {hypothesis(cause, [](HeadFunction& f, std::int64_t, std::int64_t) {
    if (f.sink == kNoSink) return false;
    f.sink = kNoSink;
    f.sink_of = -1;
    return true;
  })};
}

// With the sink's own gradient lost, or taken at 0.
std::vector<Hypothesis> zero_added(const Cause& cause, const Probe&) {
  std::vector<Hypothesis> both;
  for (const bool keeps_gradient : {false, true}) {
    both.push_back(hypothesis(cause, [=](HeadFunction& f, std::int64_t, std::int64_t) {
      if (f.sink == 0 && (keeps_gradient || f.sink_of < 0)) return false;
      f.sink = 0;
      if (!keeps_gradient) f.sink_of = -1;
      return true;
    }));
  }
  return both;
}

// The sink is another function of itself, and the gradient knows of it or not.
template <typename Change>
std::vector<Hypothesis> changed_by_factor(const Cause& cause, Change factor_of) {
  std::vector<Hypothesis> both;
  for (const bool chained : {true, false}) {
    both.push_back(hypothesis(cause, [=](HeadFunction& f, std::int64_t, std::int64_t) {
      if (!std::isfinite(f.sink) || (f.sink == 0 && !chained)) return false;
      const double factor = factor_of(f);
      f.sink *= factor;
      if (chained) f.sink_weight *= factor;
      return true;
    }));
  }
  return both;
}

std::vector<Hypothesis> scaled(const Cause& cause, const Probe&) {
  return changed_by_factor(cause, [](const HeadFunction& f) { return f.scale; });
}

std::vector<Hypothesis> log2_taken(const Cause& cause, const Probe&) {
  return changed_by_factor(cause, [](const HeadFunction&) { return kLn2; });
}

std::vector<Hypothesis> rounded(const Cause& cause, const Probe&) {
  return {hypothesis(cause, [](HeadFunction& f, std::int64_t, std::int64_t) {
    const double rounded = widen_bf16(round_to_bf16(f.sink));
    if (rounded == f.sink) return false;
    f.sink = rounded;
    return true;
  })};
}

std::vector<Hypothesis> twice(const Cause& cause, const Probe&) {
  return {hypothesis(cause, [](HeadFunction& f, std::int64_t, std::int64_t) {
    if (!std::isfinite(f.sink)) return false;
    f.sink += kLn2;
    return true;
  })};
}

// Which head's sink each head takes is found from its own outputs.
std::vector<Hypothesis> permuted(const Cause& cause, const Probe& probe) {
  std::vector<Hypothesis> both;
  const Case& c = probe.c;
  for (const bool follows : {true, false}) {
    both.push_back(hypothesis(
        cause, [&c, got = probe.got, follows](HeadFunction& f, std::int64_t batch, std::int64_t head) {
          const std::optional<std::int64_t> source = sink_source(c, batch, head, f, got);
          if (!source) return false;
          f.sink = c.sinks.at(*source);
          if (follows) f.sink_of = *source;
          f.note = fmt::format("head {} takes the sink of head {}", head, *source);
          return true;
        }));
  }
  return both;
}

}  // namespace

std::vector<Cause> sink_causes() {
  return {
      {"sink_ignored", "the sink is left out of the softmax",
       "call an attention that takes the sink (sink_kernel, flash_attention_2_sink or eager)",
       "flash_attention_2 has no sink; older transformers and direct callers use it for GPT-OSS "
       "(transformers 42533)",
       Stage::kForward, 0, needs_sinks, ignored},
      {"sink_zero_added", "every sink is taken as 0, as in an off-by-one softmax",
       "pass the learned sinks; without sinks pass none rather than zeros",
       "gpt-oss's Triton kernel adds exp(0) where it is given no sinks", Stage::kForward, 0, nullptr,
       zero_added},
      {"sink_scaled", "the sink is multiplied by the softmax scale",
       "add the sink to the logits after they were scaled", "kernels that scale in the exponent",
       Stage::kForward, 0, needs_sinks, scaled},
      {"sink_log2", "the sink, a natural logarithm, is taken as a base-2 one",
       "multiply the sink by log2(e) where the softmax works in base 2", "kernels with exp2; pytorch 181645",
       Stage::kForward, 0, needs_sinks, log2_taken},
      {"sink_twice", "the sink is counted twice in the softmax's denominator",
       "add the sink once: in one split of the keys or one rank of a ring only",
       "split keys and context parallelism", Stage::kForward, 0, needs_sinks, twice},
      {"sink_bf16", "the sinks are rounded to bf16", "pass the sinks in fp32",
       "transformers casts s_aux to the queries' format", Stage::kForward, 0, needs_long_sinks, rounded},
      {"sink_permuted", "a head takes another head's sink",
       "slice and order the sinks as the query heads are, on every rank",
       "sequence parallelism over heads (verl 4551)", Stage::kForward, 1, needs_two_sinks, permuted},
  };
}

}  // namespace sinkscope
