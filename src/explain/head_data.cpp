// SPDX-License-Identifier: Apache-2.0
#include "src/explain/head_data.hpp"

#include <algorithm>

namespace sinkscope {
namespace {

using Vector = std::vector<double>;

constexpr std::int64_t kRowsOfBlock = 64;

Vector rows_of(const Tensor& tensor, std::int64_t head, std::int64_t rows, std::int64_t columns) {
  if (!tensor.given()) return {};
  Vector values(static_cast<std::size_t>(rows * columns));
  tensor.widen(head * rows * columns, values);
  return values;
}

Vector products_of_rows(const Vector& a, const Vector& b, std::size_t columns) {
  Vector sums(a.size() / columns);
  for (std::size_t i = 0; i < a.size(); ++i) sums[i / columns] += a[i] * b[i];
  return sums;
}

Range visible(const Part& part, std::int64_t row) {
  const std::int64_t own = row - part.rows.first + part.keys.size() - part.rows.size();
  const std::int64_t end =
      part.causal ? std::clamp<std::int64_t>(own + 1, 0, part.keys.size()) : part.keys.size();
  const std::int64_t first = part.window > 0 ? std::clamp<std::int64_t>(own + 1 - part.window, 0, end) : 0;
  return {part.keys.first + first, part.keys.first + end};
}

}  // namespace

HeadData head_data(const Case& c, const Truth& truth, const Outputs& outputs, std::int64_t batch,
                   std::int64_t head) {
  const AttentionShape& s = c.problem.shape;
  const std::int64_t query = batch * s.hq + head;
  HeadData data{right_function(c, head), s.sq, s.sk, s.d, narrow_of(s.dtype)};
  const std::int64_t kv = batch * s.hkv + data.function.kv_head;
  data.q = rows_of(c.q, query, s.sq, s.d);
  data.k = rows_of(c.k, kv, s.sk, s.d);
  data.v = rows_of(c.v, kv, s.sk, s.d);
  data.dout = rows_of(c.dout, query, s.sq, s.d);
  data.dlse = rows_of(c.dlse, query, s.sq, 1);
  data.lse.assign(truth.value.lse.begin() + query * s.sq, truth.value.lse.begin() + (query + 1) * s.sq);
  data.own_lse = rows_of(outputs.lse, query, s.sq, 1);
  const auto d = static_cast<std::size_t>(s.d);
  if (!data.dout.empty()) {
    const auto first = truth.value.out.begin() + query * s.sq * s.d;
    data.delta = products_of_rows(data.dout, Vector(first, first + s.sq * s.d), d);
    if (outputs.out.given())
      data.own_delta = products_of_rows(data.dout, rows_of(outputs.out, query, s.sq, s.d), d);
  }
  data.blocks.resize(static_cast<std::size_t>(s.sq));
  for (const Part& part : data.function.parts) {
    for (std::int64_t row = part.rows.first; row < part.rows.end; ++row) {
      const std::int64_t first = row - (row - part.rows.first) % kRowsOfBlock;
      data.blocks[static_cast<std::size_t>(row)] = {visible(part, row),
                                                    {visible(part, first).first, part.keys.end}};
    }
  }
  return data;
}

}  // namespace sinkscope
