// SPDX-License-Identifier: Apache-2.0
#include "src/explain/head_function.hpp"

#include <algorithm>

namespace sinkscope {

HeadFunction right_function(const Case& c, std::int64_t head) {
  const AttentionShape& s = c.problem.shape;
  HeadFunction f;
  f.scale = static_cast<float>(s.scale);
  f.kv_head = head / s.group();
  if (c.sinks.given()) {
    f.sink = c.sinks.at(head);
    f.sink_of = head;
  }
  const std::vector<std::int64_t> cu_q = s.docs.empty() ? std::vector<std::int64_t>{0, s.sq} : s.cu_q();
  const std::vector<std::int64_t> cu_k = s.docs.empty() ? std::vector<std::int64_t>{0, s.sk} : s.cu_k();
  for (std::size_t i = 0; i + 1 < cu_q.size(); ++i)
    f.parts.push_back({{cu_q[i], cu_q[i + 1]}, {cu_k[i], cu_k[i + 1]}, s.causal, s.window});
  f.rows = {0, s.sq};
  return f;
}

HeadFunction only_rows(HeadFunction function, Range rows) {
  std::vector<Part> parts;
  for (Part part : function.parts) {
    const std::int64_t nk = part.keys.size();
    const Range kept{std::max(part.rows.first, rows.first), std::min(part.rows.end, rows.end)};
    if (kept.size() <= 0) continue;
    if (part.causal) {
      // Rows and keys are counted from the ends that stay where they are: keys that no row sees go.
      const std::int64_t beyond = part.reversed ? kept.first - part.rows.first : part.rows.end - kept.end;
      const std::int64_t seen = std::clamp<std::int64_t>(nk - beyond, 0, nk);
      const std::int64_t needed = part.window > 0 ? std::min(seen, kept.size() + part.window - 1) : seen;
      if (part.reversed) {
        part.keys.first = part.keys.end - seen;
        part.keys.end = part.keys.first + needed;
      } else {
        part.keys.end = part.keys.first + seen;
        part.keys.first = part.keys.end - needed;
      }
    }
    part.rows = kept;
    parts.push_back(part);
  }
  function.parts = std::move(parts);
  function.rows = rows;
  return function;
}

}  // namespace sinkscope
