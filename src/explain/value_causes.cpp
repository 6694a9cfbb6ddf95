// SPDX-License-Identifier: Apache-2.0
// Mistakes with scale, heads and layout.
#include <cmath>

#include "fmt/format.h"

#include "src/explain/cause.hpp"
#include "src/explain/estimate.hpp"

namespace sinkscope {
namespace {

std::optional<std::string> needs_scale(const Case& c) {
  if (c.problem.shape.scale != 1) return std::nullopt;
  return "the scale is 1";
}

std::optional<std::string> needs_groups(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  if (s.group() == 1) return "every query head has keys of its own";
  if (s.hkv == 1) return "all query heads share one head of keys";
  return std::nullopt;
}

std::optional<std::string> needs_shared_keys(const Case& c) {
  if (!c.dout.given()) return "the case has no backward";
  if (c.problem.shape.group() > 1) return std::nullopt;
  return "every query head has keys of its own";
}

std::optional<std::string> needs_square_rows(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  if (!s.docs.empty()) return "the case is packed";
  if (s.hq == 1) return "there is one head";
  return std::nullopt;
}

Hypothesis with_scale(const Cause& cause, double scale) {
  return hypothesis(cause, [scale](HeadFunction& f, std::int64_t, std::int64_t) {
    if (f.scale == scale) return false;
    f.note = fmt::format("scale {:.6g} in place of {:.6g}", scale, f.scale);
    f.key += fmt::format("({})", scale);
    f.scale = scale;
    return true;
  });
}

std::vector<Hypothesis> scale_missing(const Cause& cause, const Probe&) {
  return {with_scale(cause, 1)};
}

std::vector<Hypothesis> scale_squared(const Cause& cause, const Probe& probe) {
  return {with_scale(cause, probe.base.scale * probe.base.scale)};
}

std::vector<Hypothesis> scale_wrong(const Cause& cause, const Probe& probe) {
  std::vector<Hypothesis> found;
  for (const TensorName tensor : {TensorName::kLse, TensorName::kOut}) {  // the LSE tells more digits
    const std::optional<double> scale =
        estimated_scale(probe.c, probe.batch, probe.head, probe.base, probe.got, tensor);
    if (scale) found.push_back(with_scale(cause, *scale));
  }
  return found;
}

std::vector<Hypothesis> softcapped(const Cause& cause, const Probe& probe) {
  std::vector<Hypothesis> found;
  for (const TensorName tensor : {TensorName::kLse, TensorName::kOut}) {
    const std::optional<double> cap =
        estimated_softcap(probe.c, probe.batch, probe.head, probe.base, probe.got, tensor);
    if (!cap) continue;
    found.push_back(hypothesis(cause, [cap = *cap](HeadFunction& f, std::int64_t, std::int64_t) {
      f.softcap = cap;
      f.note = fmt::format("cap {:.6g}", cap);
      f.key += fmt::format("({})", cap);
      return true;
    }));
  }
  return found;
}

std::vector<Hypothesis> interleaved(const Cause& cause, const Probe& probe) {
  const std::int64_t hkv = probe.c.problem.shape.hkv;
  return {hypothesis(cause, [hkv](HeadFunction& f, std::int64_t, std::int64_t head) {
    if (f.kv_head == head % hkv) return false;
    f.kv_head = head % hkv;
    return true;
  })};
}

std::vector<Hypothesis> not_summed(const Cause& cause, const Probe& probe) {
  std::vector<Hypothesis> members;
  const std::int64_t group = probe.c.problem.shape.group();
  for (std::int64_t member = 0; member < group; ++member) {
    members.push_back(hypothesis(cause, [group, member](HeadFunction& f, std::int64_t, std::int64_t head) {
      if (head % group != member) f.kv_weight = 0;
      f.key += fmt::format("({})", member);
      f.note = fmt::format("only query head {} of each {} counts", member, group);
      return true;
    }));
  }
  return members;
}

std::vector<Hypothesis> mean(const Cause& cause, const Probe& probe) {
  const std::int64_t group = probe.c.problem.shape.group();
  return {hypothesis(cause, [group](HeadFunction& f, std::int64_t, std::int64_t) {
    f.kv_weight = 1.0 / static_cast<double>(group);
    return true;
  })};
}

std::vector<Hypothesis> swapped(const Cause& cause, const Probe&) {
  std::vector<Hypothesis> both;
  for (const HeadLayout layout : {HeadLayout::kTransposed, HeadLayout::kReread}) {
    both.push_back(hypothesis(cause, [layout](HeadFunction& f, std::int64_t, std::int64_t) {
      f.layout = layout;
      if (layout == HeadLayout::kTransposed) f.sink_of = -1;
      f.key += layout == HeadLayout::kTransposed ? "(transposed)" : "(reread)";
      return true;
    }));
  }
  return both;
}

}  // namespace

std::vector<Cause> value_causes() {
  return {
      {"scale_missing", "the logits are not scaled", "pass the softmax scale",
       "a kernel that wants scaled queries", Stage::kForward, 0, needs_scale, scale_missing},
      {"scale_squared", "the logits are scaled twice", "scale either the queries or the logits",
       "queries that are scaled before a kernel that scales", Stage::kForward, 0, needs_scale, scale_squared},
      {"gqa_interleaved", "query head h reads the keys of head h mod hkv",
       "repeat each key head for hq / hkv query heads in a row (repeat_interleave)",
       "repeat in place of repeat_interleave", Stage::kForward, 0, needs_groups, interleaved},
      {"gqa_not_summed", "dk and dv hold one query head of each group alone",
       "sum dk and dv over the query heads that share the keys", "expanded keys whose gradient is sliced",
       Stage::kKeyHeads, 1, needs_shared_keys, not_summed},
      {"gqa_mean", "dk and dv are the mean over the query heads of a group, not the sum",
       "sum dk and dv over the query heads that share the keys", "expanded keys whose gradient is averaged",
       Stage::kKeyHeads, 0, needs_shared_keys, mean},
      {"layout_swapped", "head-first tensors are read as sequence-first",
       "transpose between [b, h, s, d] and [b, s, h, d] exactly once",
       "a hook that transposes tensors that are already head-first", Stage::kForward, 0, needs_square_rows,
       swapped},
      {"scale_wrong", "the logits are scaled by another constant",
       "pass 1 / sqrt(d), or what the model's config says", "a padded head dimension taken for d",
       Stage::kForward, 1, nullptr, scale_wrong},
      {"softcap", "the logits go through a tanh that bounds them", "pass no softcap: GPT-OSS has none",
       "kernels whose softcap is left from another model", Stage::kForward, 1, nullptr, softcapped},
  };
}

}  // namespace sinkscope
