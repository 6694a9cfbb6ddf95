// SPDX-License-Identifier: Apache-2.0
// Mistakes with who sees whom.
#include <algorithm>

#include "src/explain/cause.hpp"

namespace sinkscope {
namespace {

using Change = bool (*)(std::vector<Part>&);

std::vector<Hypothesis> of_parts(const Cause& cause, Change change) {
  return {
      hypothesis(cause, [change](HeadFunction& f, std::int64_t, std::int64_t) { return change(f.parts); })};
}

bool moved_windows(std::vector<Part>& parts, std::int64_t by) {
  bool changed = false;
  for (Part& part : parts) {
    if (part.window == 0 || part.window + by < 1) continue;
    part.window += by;
    changed = true;
  }
  return changed;
}

bool window_ignored(std::vector<Part>& parts) {
  const std::vector<Part> before = parts;
  for (Part& part : parts) part.window = 0;
  return parts != before;
}

// What comes after a row's own key: up to `window` keys in all, or all of them (0). Counted from the ends it is causal.
bool add_later_keys(std::vector<Part>& parts) {
  std::vector<Part> later;
  for (const Part& part : parts) {
    const std::int64_t before_first = part.keys.size() - part.rows.size();
    if (part.reversed || !part.causal || before_first < 0) return false;
    if (part.window == 1 || part.rows.size() < 2) continue;
    Part after = part;
    after.keys.first += before_first + 1;
    after.window = std::max<std::int64_t>(0, part.window - 1);
    after.reversed = true;
    after.sink = false;
    later.push_back(after);
  }
  parts.insert(parts.end(), later.begin(), later.end());
  return !later.empty();
}

bool window_symmetric(std::vector<Part>& parts) {
  return std::any_of(parts.begin(), parts.end(), [](const Part& p) { return p.window > 0; }) &&
         add_later_keys(parts);
}

bool causal_missing(std::vector<Part>& parts) {
  const std::vector<Part> before = parts;
  for (Part& part : parts) {
    part.causal = false;
    part.window = 0;
  }
  return parts != before;
}

// The first row sees the first key alone, however many more keys than rows there are.
bool causal_top_left(std::vector<Part>& parts) {
  std::vector<Part> moved;
  for (const Part& part : parts) {
    const std::int64_t rows = part.rows.size(), keys = part.keys.size();
    if (!part.causal || part.reversed || (rows > keys && part.window > 0)) return false;
    Part first = part;
    first.rows.end = part.rows.first + std::min(rows, keys);
    first.keys.end = part.keys.first + std::min(rows, keys);
    moved.push_back(first);
    if (rows <= keys) continue;
    Part rest = part;  // rows after the last key see all of them
    rest.rows.first = first.rows.end;
    rest.causal = false;
    moved.push_back(rest);
  }
  const bool changed = moved != parts;
  parts = std::move(moved);
  return changed;
}

bool documents_leak(std::vector<Part>& parts) {
  if (parts.size() < 2) return false;
  Part whole = parts.front();
  whole.rows.end = parts.back().rows.end;
  whole.keys.end = parts.back().keys.end;
  parts = {whole};
  return true;
}

std::int64_t longest_document(const AttentionShape& s) {
  const std::vector<std::int64_t>& lengths = s.docs_k.empty() ? s.docs : s.docs_k;
  return lengths.empty() ? s.sk : *std::max_element(lengths.begin(), lengths.end());
}

std::optional<std::string> needs_window(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  if (s.window == 0) return "the case has no window";
  if (s.window >= longest_document(s)) return "the window is as long as the keys";
  return std::nullopt;
}

std::optional<std::string> needs_any_window(const Case& c) {
  if (c.problem.shape.window > 1) return std::nullopt;
  return "the case has no window of two keys or more";
}

std::optional<std::string> needs_shrinkable_window(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  if (s.window < 2) return "the case has no window of two keys or more";
  if (s.window > longest_document(s)) return "the window is longer than the keys";
  return std::nullopt;
}

std::optional<std::string> needs_causal(const Case& c) {
  if (c.problem.shape.causal) return std::nullopt;
  return "the case is not causal";
}

std::optional<std::string> needs_unequal_lengths(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  if (!s.causal) return "the case is not causal";
  if (s.docs.empty() ? s.sq == s.sk : s.docs_k.empty() || s.docs_k == s.docs)
    return "there are as many keys as rows";
  return std::nullopt;
}

std::optional<std::string> needs_documents(const Case& c) {
  if (c.problem.shape.docs.size() > 1) return std::nullopt;
  return "the case has one document";
}

// As its own key is `own`, a window of W sees W keys; this much more or fewer.
template <std::int64_t kBy>
std::vector<Hypothesis> window_moved(const Cause& cause, const Probe&) {
  return of_parts(cause, [](std::vector<Part>& parts) { return moved_windows(parts, kBy); });
}

template <Change kChange>
std::vector<Hypothesis> changed(const Cause& cause, const Probe&) {
  return of_parts(cause, kChange);
}

// Every later key is seen: with the window gone as well, or with the window still ending at the row's own key.
std::vector<Hypothesis> without_causal(const Cause& cause, const Probe&) {
  std::vector<Hypothesis> both = of_parts(cause, causal_missing);
  both.push_back(hypothesis(cause, [](HeadFunction& f, std::int64_t, std::int64_t) {
    if (std::none_of(f.parts.begin(), f.parts.end(), [](const Part& p) { return p.window > 0; }))
      return false;
    if (!add_later_keys(f.parts)) return false;
    for (Part& part : f.parts) {
      if (part.reversed) part.window = 0;
    }
    f.key += "(left window kept)";
    return true;
  }));
  return both;
}

}  // namespace

std::vector<Cause> mask_causes() {
  return {
      {"window_plus_one", "the window sees one key too many",
       "pass W - 1 where the kernel counts the keys before the row's own",
       "transformers before 40163 passed W to flash attention, whose window does not count the row's own key",
       Stage::kForward, 0, needs_window, window_moved<1>},
      {"window_minus_one", "the window sees one key too few",
       "pass W where the kernel counts the row's own key too",
       "cuDNN's left bound counts the row's own key, flash attention's does not", Stage::kForward, 0,
       needs_shrinkable_window, window_moved<-1>},
      {"window_ignored", "the window is not applied", "pass the layer's window to the kernel",
       "a wrapper that drops unknown keyword arguments", Stage::kForward, 0, needs_window,
       changed<window_ignored>},
      {"causal_missing", "rows see the keys after their own", "pass causal=True, also in training mode",
       "a wrapper that takes causal from a mask that is not there", Stage::kForward, 0, needs_causal,
       without_causal},
      {"window_symmetric", "the window reaches as far forward as back",
       "pass (W - 1, 0), or causal beside (W - 1, W - 1)", "flash attention's window without its causal flag",
       Stage::kForward, 0, needs_any_window, changed<window_symmetric>},
      {"causal_top_left", "the causal mask is aligned at the top left",
       "align it at the bottom right: the last row sees the last key",
       "flash attention before 2.1; PyTorch's is_causal", Stage::kForward, 0, needs_unequal_lengths,
       changed<causal_top_left>},
      {"documents_leak", "packed documents see each other",
       "pass cu_seqlens, or a mask that knows the documents",
       "transformers' eager without position ids of packed rows", Stage::kForward, 0, needs_documents,
       changed<documents_leak>},
  };
}

}  // namespace sinkscope
