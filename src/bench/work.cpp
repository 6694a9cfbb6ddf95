// SPDX-License-Identifier: Apache-2.0
#include "src/bench/work.hpp"

#include <algorithm>

namespace sinkscope {
namespace {

// Pairs of one head of one document of sq rows and sk keys.
double pairs_of_document(const AttentionShape& shape, std::int64_t sq, std::int64_t sk) {
  if (!shape.causal) return static_cast<double>(sq) * static_cast<double>(sk);
  double pairs = 0;
  for (std::int64_t row = 0; row < sq; ++row) {
    std::int64_t keys = std::clamp<std::int64_t>(row + sk - sq + 1, 0, sk);
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
  if (shape.docs.empty()) return heads * pairs_of_document(shape, shape.sq, shape.sk);
  const std::vector<std::int64_t>& keys = shape.docs_k.empty() ? shape.docs : shape.docs_k;
  double pairs = 0;
  for (std::size_t i = 0; i < shape.docs.size(); ++i)
    pairs += pairs_of_document(shape, shape.docs[i], keys[i]);
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
