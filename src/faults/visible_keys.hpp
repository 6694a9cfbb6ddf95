// SPDX-License-Identifier: Apache-2.0
// Who sees whom, for faults that are computed in plain loops.
#pragma once

#include <algorithm>
#include <cstdint>

#include "src/problem/problem.hpp"

namespace sinkscope {

// The key range of a row within its document, and the document's first key.
struct VisibleKeys {
  std::int64_t first, end;
};
inline VisibleKeys visible_keys(const AttentionShape& s, std::int64_t row) {
  std::int64_t row0 = 0, key0 = 0, rows = s.sq, keys = s.sk;
  for (std::size_t i = 0; i < s.docs.size(); ++i) {
    rows = s.docs[i];
    keys = s.docs_k.empty() ? rows : s.docs_k[i];
    if (row < row0 + rows) break;
    row0 += rows;
    key0 += keys;
  }
  const std::int64_t own = row - row0 + keys - rows;
  const std::int64_t end = s.causal ? std::clamp<std::int64_t>(own + 1, 0, keys) : keys;
  const std::int64_t first = s.window > 0 ? std::clamp<std::int64_t>(own + 1 - s.window, 0, end) : 0;
  return {key0 + first, key0 + end};
}

}  // namespace sinkscope
