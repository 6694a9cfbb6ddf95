// SPDX-License-Identifier: Apache-2.0
#include "src/lab/gradient_blocks.hpp"

#include <cstddef>

namespace sinkscope::lab {
namespace {

// Heads of a kind; one block without a head for kOther.
std::int64_t heads_of(const ModelShape& shape, BlockKind kind) {
  if (kind == BlockKind::kOther) return 1;
  return kind == BlockKind::kQ || kind == BlockKind::kSink ? shape.hq : shape.hkv;
}

constexpr BlockKind kKinds[] = {BlockKind::kQ, BlockKind::kK, BlockKind::kV, BlockKind::kSink,
                                BlockKind::kOther};

// Where a layer's blocks of a kind begin; layer -1 is the one block at the end.
std::size_t first_block(const ModelShape& shape, std::int64_t layer, BlockKind kind) {
  std::int64_t per_layer = 0, before = 0;
  for (const BlockKind other : kKinds) {
    if (other == kind) before = per_layer;
    per_layer += heads_of(shape, other);
  }
  return static_cast<std::size_t>(layer < 0 ? shape.layers * per_layer : layer * per_layer + before);
}

}  // namespace

std::vector<Block> blocks_of(const ModelShape& shape) {
  std::vector<Block> blocks;
  for (std::int64_t layer = 0; layer < shape.layers; ++layer)
    for (const BlockKind kind : kKinds)
      for (std::int64_t head = 0; head < heads_of(shape, kind); ++head)
        blocks.push_back({layer, kind, kind == BlockKind::kOther ? -1 : head});
  blocks.push_back({});
  return blocks;
}

std::vector<double> dot_by_block(const Model& model, const std::vector<at::Tensor>& a,
                                 const std::vector<at::Tensor>& b) {
  const ModelShape& shape = model.shape();
  const std::vector<Parameter>& parameters = model.parameters();
  // Rows of a projection's weight or bias, and the sinks, go by head. All sums come to the host at once.
  const std::vector<at::Tensor> products = at::_foreach_mul(a, b);
  std::vector<at::Tensor> by_head;
  for (std::size_t i = 0; i < parameters.size(); ++i)
    by_head.push_back(
        products[i].reshape({heads_of(shape, parameters[i].kind), -1}).sum({1}, false, at::kDouble));
  const at::Tensor all = at::cat(by_head).to(at::kCPU);
  const double* next = all.const_data_ptr<double>();
  std::vector<double> sums(blocks_of(shape).size());
  for (const Parameter& parameter : parameters) {
    const std::size_t first = first_block(shape, parameter.layer, parameter.kind);
    for (std::int64_t head = 0; head < heads_of(shape, parameter.kind); ++head)
      sums[first + static_cast<std::size_t>(head)] += *next++;
  }
  return sums;
}

}  // namespace sinkscope::lab
