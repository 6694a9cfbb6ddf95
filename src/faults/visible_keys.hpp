// SPDX-License-Identifier: Apache-2.0
// Who sees whom, for faults that are computed in plain loops.
#pragma once

#include <algorithm>
#include <cstdint>

#include "src/problem/problem.hpp"

namespace sinkscope {

// A row's own key and its document: keys [first, end), of which it sees those up to `own` where the case is causal.
struct DocumentOfRow {
  std::int64_t first, end, own;
};
inline DocumentOfRow document_of_row(const AttentionShape& s, std::int64_t row) {
  std::int64_t row0 = 0, key0 = 0, rows = s.sq, keys = s.sk;
  for (std::size_t i = 0; i < s.docs.size(); ++i) {
    rows = s.docs[i];
    keys = s.docs_k.empty() ? rows : s.docs_k[i];
    if (row < row0 + rows) break;
    row0 += rows;
    key0 += keys;
  }
  return {key0, key0 + keys, key0 + row - row0 + keys - rows};
}

// The keys that a row sees.
struct VisibleKeys {
  std::int64_t first, end;
};
inline VisibleKeys visible_keys(const AttentionShape& s, std::int64_t row) {
  const DocumentOfRow document = document_of_row(s, row);
  const std::int64_t end =
      s.causal ? std::clamp(document.own + 1, document.first, document.end) : document.end;
  const std::int64_t first =
      s.window > 0 ? std::clamp(document.own + 1 - s.window, document.first, end) : document.first;
  return {first, end};
}

// Those that it would see if its window reached as far forward as back.
inline VisibleKeys keys_of_symmetric_window(const AttentionShape& s, std::int64_t row) {
  const DocumentOfRow document = document_of_row(s, row);
  return {std::clamp(document.own + 1 - s.window, document.first, document.end),
          std::clamp(document.own + s.window, document.first, document.end)};
}

}  // namespace sinkscope
