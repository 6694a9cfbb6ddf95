// SPDX-License-Identifier: Apache-2.0
#include "src/bench/work.hpp"

#include <algorithm>

namespace sinkscope {
namespace {

// Pairs of one head of one document.
double pairs_of_document(const AttentionShape& shape, const DocumentSize& document) {
  if (!shape.causal) return static_cast<double>(document.rows) * static_cast<double>(document.keys);
  double pairs = 0;
  for (std::int64_t row = 0; row < document.rows; ++row) {
    std::int64_t keys = std::clamp<std::int64_t>(row + document.keys - document.rows + 1, 0, document.keys);
    if (shape.window > 0) keys = std::min(keys, shape.window);
    pairs += static_cast<double>(keys);
  }
  return pairs;
}

struct Sizes {
  double query_elements, key_elements, rows, element_bytes;
};

Sizes sizes_of(const Problem& problem) {
  const AttentionShape& s = problem.shape;
  const double rows = static_cast<double>(s.b * s.hq * s.sq);
  return {rows * static_cast<double>(s.d), static_cast<double>(s.b * s.hkv * s.sk * s.d), rows,
          static_cast<double>(size_of(s.dtype))};
}

}  // namespace

double visible_pairs(const AttentionShape& shape) {
  const auto heads = static_cast<double>(shape.b * shape.hq);
  double pairs = 0;
  for (const DocumentSize& document : shape.documents()) pairs += pairs_of_document(shape, document);
  return heads * pairs;
}

Work forward_work(const Problem& problem) {
  const Sizes n = sizes_of(problem);
  const double residual = problem.residual ? n.query_elements : 0;
  // q, out; k, v; lse
  return {2 * 2 * static_cast<double>(problem.shape.d) * visible_pairs(problem.shape),
          (2 * n.query_elements + 2 * n.key_elements) * n.element_bytes + 4 * n.rows + residual};
}

Work backward_work(const Problem& problem) {
  const Sizes n = sizes_of(problem);
  const double residual = problem.residual ? n.query_elements : 0;
  // q, out, dout, dq; k, v, dk, dv; lse
  return {5 * 2 * static_cast<double>(problem.shape.d) * visible_pairs(problem.shape),
          (4 * n.query_elements + 4 * n.key_elements) * n.element_bytes +
              4 * n.rows * (problem.dlse ? 2 : 1) + residual};
}

}  // namespace sinkscope
