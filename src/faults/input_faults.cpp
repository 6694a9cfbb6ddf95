// SPDX-License-Identifier: Apache-2.0
// Mistakes with what goes into attention: sinks, masks, scale, heads, layout. Forward and backward agree with each
// other.
#include <algorithm>
#include <cmath>

#include "src/faults/wrap.hpp"

namespace sinkscope {
namespace {

using Change = void (*)(Case&);

const double kLn2 = std::log(2.0);

std::optional<std::string> visible(const Case&) {
  return std::nullopt;
}

std::optional<std::string> needs_sinks(const Case& c) {
  if (c.sinks.given()) return std::nullopt;
  return "the mistake needs a sink, the case has none";
}

std::optional<std::string> needs_window(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  if (s.window > 1 && s.window < s.sk) return std::nullopt;
  return "the mistake needs a window shorter than the keys";
}

std::optional<std::string> needs_causal(const Case& c) {
  if (c.problem.shape.causal) return std::nullopt;
  return "the mistake needs causal attention";
}

std::optional<std::string> needs_more_keys(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  if (s.causal && s.docs.empty() && s.sq < s.sk) return std::nullopt;
  return "the mistake needs causal attention with more keys than rows";
}

std::optional<std::string> needs_documents(const Case& c) {
  if (c.problem.shape.docs.size() > 1) return std::nullopt;
  return "the mistake needs two documents";
}

std::optional<std::string> needs_groups(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  if (s.group() > 1 && s.hkv > 1) return std::nullopt;
  return "the mistake needs query heads that share more than one head of keys";
}

std::optional<std::string> needs_equal_lengths(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  if (s.sq == s.sk && s.docs.empty() && s.hq > 1) return std::nullopt;
  return "the mistake needs heads and as many keys as rows, not packed";
}

// Runs the path on a changed case.
template <Change kChange>
PathRun run_changed(const Path& path, const Case& c, const PathOptions& options) {
  Case changed = c;
  kChange(changed);
  return path.run(changed, options);
}

// Every sink is replaced by a function of itself, whose derivative multiplies its gradient.
template <typename Of>
PathRun run_with_sinks(const Path& path, const Case& c, const PathOptions& options, Of of,
                       double derivative) {
  Case changed = c;
  changed.sinks = Tensor(DType::kFp32, {c.problem.shape.hq});
  for (std::int64_t h = 0; h < changed.sinks.size(); ++h) changed.sinks.set(h, of(c.sinks.at(h)));
  PathRun run = path.run(changed, options);
  for (std::int64_t h = 0; h < run.outputs.dsinks.size(); ++h)
    run.outputs.dsinks.set(h, derivative * run.outputs.dsinks.at(h));
  return run;
}

Path sink_zero_added(const Path& healthy) {
  return wrap(healthy, "sink_zero_added", visible,
              [](const Path& path, const Case& c, const PathOptions& options) {
                Case zero = c;
                zero.sinks = Tensor(DType::kFp32, {c.problem.shape.hq});
                PathRun run = path.run(zero, options);
                for (std::int64_t h = 0; h < run.outputs.dsinks.size(); ++h) run.outputs.dsinks.set(h, 0);
                if (!c.sinks.given()) run.outputs.dsinks = {};
                return run;
              });
}

Path sink_scaled(const Path& healthy) {
  return wrap(healthy, "sink_scaled", needs_sinks,
              [](const Path& path, const Case& c, const PathOptions& options) {
                const double scale = c.problem.shape.scale;
                return run_with_sinks(
                    path, c, options, [scale](double s) { return s * scale; }, scale);
              });
}

Path sink_log2(const Path& healthy) {
  return wrap(healthy, "sink_log2", needs_sinks,
              [](const Path& path, const Case& c, const PathOptions& options) {
                return run_with_sinks(
                    path, c, options, [](double s) { return s * kLn2; }, kLn2);
              });
}

Path sink_twice(const Path& healthy) {
  return wrap(healthy, "sink_twice", needs_sinks,
              [](const Path& path, const Case& c, const PathOptions& options) {
                return run_with_sinks(
                    path, c, options, [](double s) { return s + kLn2; }, 1);
              });
}

Path sink_bf16(const Path& healthy) {
  return wrap(healthy, "sink_bf16", needs_sinks,
              [](const Path& path, const Case& c, const PathOptions& options) {
                return run_with_sinks(
                    path, c, options, [](double s) { return widen_bf16(round_to_bf16(s)); }, 1);
              });
}

void narrower(Case& c) {
  --c.problem.shape.window;
}
void without_window(Case& c) {
  c.problem.shape.window = 0;
}
void without_causal(Case& c) {
  c.problem.shape.causal = false;
  c.problem.shape.window = 0;
}
void one_document(Case& c) {
  c.problem.shape.docs.clear();
  c.problem.shape.docs_k.clear();
}
void without_scale(Case& c) {
  c.problem.shape.scale = 1;
}
void scaled_twice(Case& c) {
  c.problem.shape.scale *= c.problem.shape.scale;
}
void scaled_by_another(Case& c) {
  c.problem.shape.scale *= 0.7;
}

Path window_minus_one(const Path& healthy) {
  return wrap(healthy, "window_minus_one", needs_window, run_changed<narrower>);
}
Path window_ignored(const Path& healthy) {
  return wrap(healthy, "window_ignored", needs_window, run_changed<without_window>);
}
Path causal_missing(const Path& healthy) {
  return wrap(healthy, "causal_missing", needs_causal, run_changed<without_causal>);
}
Path documents_leak(const Path& healthy) {
  return wrap(healthy, "documents_leak", needs_documents, run_changed<one_document>);
}
Path scale_missing(const Path& healthy) {
  return wrap(healthy, "scale_missing", visible, run_changed<without_scale>);
}
Path scale_squared(const Path& healthy) {
  return wrap(healthy, "scale_squared", visible, run_changed<scaled_twice>);
}
Path scale_wrong(const Path& healthy) {
  return wrap(healthy, "scale_wrong", visible, run_changed<scaled_by_another>);
}

// Rows [0, rows) of every head; and back, with zeros behind.
Tensor first_rows(const Tensor& tensor, std::int64_t heads, std::int64_t rows, std::int64_t of,
                  std::int64_t d) {
  std::vector<std::int64_t> shape = tensor.shape();
  shape[2] = rows;
  Tensor part(tensor.dtype(), shape);
  for (std::int64_t i = 0; i < heads * std::min(rows, of) * d; ++i) {
    const std::int64_t kept = std::min(rows, of), head = i / (kept * d), rest = i % (kept * d);
    part.set(head * rows * d + rest, tensor.at(head * of * d + rest));
  }
  return part;
}

// With more keys than rows, a mask from the top left shows only the first of them.
Path causal_top_left(const Path& healthy) {
  return wrap(healthy, "causal_top_left", needs_more_keys,
              [](const Path& path, const Case& c, const PathOptions& options) {
                const AttentionShape& s = c.problem.shape;
                Case square = c;
                square.problem.shape.sk = s.sq;
                square.k = first_rows(c.k, s.b * s.hkv, s.sq, s.sk, s.d);
                square.v = first_rows(c.v, s.b * s.hkv, s.sq, s.sk, s.d);
                PathRun run = path.run(square, options);
                for (Tensor* tensor : {&run.outputs.dk, &run.outputs.dv}) {
                  if (tensor->given()) *tensor = first_rows(*tensor, s.b * s.hkv, s.sk, s.sq, s.d);
                }
                return run;
              });
}

// Takes the heads of a tensor in another order: head h of the result is head order[h].
Tensor reordered(const Tensor& tensor, const std::vector<std::int64_t>& order, std::int64_t b) {
  if (!tensor.given()) return {};
  Tensor to(tensor.dtype(), tensor.shape());
  const auto heads = static_cast<std::int64_t>(order.size());
  const std::int64_t per_head = tensor.size() / (b * heads);
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    const std::int64_t batch = i / (heads * per_head), head = i / per_head % heads;
    to.set(i, tensor.at((batch * heads + order[static_cast<std::size_t>(head)]) * per_head + i % per_head));
  }
  return to;
}

// Query head h shall read keys h mod hkv: heads are put in an order in which a healthy path does that, and back.
Path gqa_interleaved(const Path& healthy) {
  return wrap(healthy, "gqa_interleaved", needs_groups,
              [](const Path& path, const Case& c, const PathOptions& options) {
                const AttentionShape& s = c.problem.shape;
                std::vector<std::int64_t> order, back(static_cast<std::size_t>(s.hq));
                for (std::int64_t kv = 0; kv < s.hkv; ++kv) {
                  for (std::int64_t g = 0; g < s.group(); ++g) {
                    back[static_cast<std::size_t>(g * s.hkv + kv)] = static_cast<std::int64_t>(order.size());
                    order.push_back(g * s.hkv + kv);
                  }
                }
                Case sorted = c;
                sorted.q = reordered(c.q, order, s.b);
                sorted.dout = reordered(c.dout, order, s.b);
                sorted.dlse = reordered(c.dlse, order, s.b);
                sorted.sinks = reordered(c.sinks, order, 1);
                PathRun run = path.run(sorted, options);
                for (Tensor* tensor : {&run.outputs.out, &run.outputs.lse, &run.outputs.dq})
                  *tensor = reordered(*tensor, back, s.b);
                run.outputs.dsinks = reordered(run.outputs.dsinks, back, 1);
                return run;
              });
}

// [b, h, s, d] to [b, s, h, d], and from it.
Tensor transposed(const Tensor& tensor, std::int64_t b, std::int64_t h, std::int64_t s, std::int64_t d) {
  if (!tensor.given()) return {};
  Tensor to(tensor.dtype(), d > 0 ? std::vector{b, s, h, d} : std::vector{b, s, h});
  const std::int64_t columns = std::max<std::int64_t>(d, 1);
  for (std::int64_t i = 0; i < b * h * s; ++i) {
    const std::int64_t batch = i / (h * s), head = i / s % h, row = i % s;
    for (std::int64_t column = 0; column < columns; ++column)
      to.set(((batch * s + row) * h + head) * columns + column, tensor.at(i * columns + column));
  }
  return to;
}

// Attention goes across the heads of each position, where no sinks fit.
Path layout_swapped(const Path& healthy) {
  return wrap(healthy, "layout_swapped", needs_equal_lengths,
              [](const Path& path, const Case& c, const PathOptions& options) {
                const AttentionShape& s = c.problem.shape;
                Case turned = c;
                AttentionShape& t = turned.problem.shape;
                t.hq = t.hkv = s.sq;
                t.sq = s.hq;
                t.sk = s.hkv;
                turned.q = transposed(c.q, s.b, s.hq, s.sq, s.d);
                turned.k = transposed(c.k, s.b, s.hkv, s.sk, s.d);
                turned.v = transposed(c.v, s.b, s.hkv, s.sk, s.d);
                turned.dout = transposed(c.dout, s.b, s.hq, s.sq, s.d);
                turned.sinks = turned.dlse = {};
                PathRun run = path.run(turned, options);
                run.outputs.out = transposed(run.outputs.out, s.b, s.sq, s.hq, s.d);
                run.outputs.dq = transposed(run.outputs.dq, s.b, s.sq, s.hq, s.d);
                run.outputs.dk = transposed(run.outputs.dk, s.b, s.sk, s.hkv, s.d);
                run.outputs.dv = transposed(run.outputs.dv, s.b, s.sk, s.hkv, s.d);
                run.outputs.lse = transposed(run.outputs.lse, s.b, s.sq, s.hq, 0);
                return run;
              });
}

}  // namespace

std::vector<Fault> input_faults() {
  return {
      {"sink_zero_added", "every sink is taken as 0", sink_zero_added},
      {"sink_scaled", "the sink is multiplied by the scale", sink_scaled},
      {"sink_log2", "the sink is taken as a base-2 logarithm", sink_log2},
      {"sink_twice", "the sink is counted twice", sink_twice},
      {"sink_bf16", "the sinks are rounded to bf16", sink_bf16},
      {"window_minus_one", "every row sees one key too few", window_minus_one},
      {"window_ignored", "the window is not applied", window_ignored},
      {"causal_missing", "every row sees every key", causal_missing},
      {"causal_top_left", "the causal mask is aligned at the top left", causal_top_left},
      {"documents_leak", "packed documents see each other", documents_leak},
      {"gqa_interleaved", "query head h reads keys h mod hkv", gqa_interleaved, true},
      {"layout_swapped", "attention goes across heads in place of positions", layout_swapped, true},
      {"scale_missing", "the logits are not scaled", scale_missing},
      {"scale_squared", "the logits are scaled twice", scale_squared},
      {"scale_wrong", "the scale is 30 % too small", scale_wrong},
  };
}

}  // namespace sinkscope
