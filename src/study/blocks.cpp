// SPDX-License-Identifier: Apache-2.0
#include "src/study/blocks.hpp"

#include <numeric>
#include <stdexcept>

#include "fmt/format.h"

#include "src/record/run_tables.hpp"

namespace sinkscope {

std::vector<BlockName> all_blocks(const RunShape& shape) {
  std::vector<BlockName> names;
  for (const BlockPart& part : kBlockParts) {
    for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
      for (std::int64_t head = 0; head < heads_of(part, shape); ++head)
        names.push_back({layer, part.name, part.heads == nullptr ? -1 : head});
    }
  }
  names.push_back({-1, "outside", -1});
  return names;
}

BlockValues to_arrays(const std::vector<double>& values, const RunShape& shape) {
  const std::size_t wanted = all_blocks(shape).size();
  if (values.size() != wanted)
    throw std::logic_error(fmt::format("{} numbers for {} blocks", values.size(), wanted));
  BlockValues arrays;
  auto at = values.begin();
  for (const BlockPart& part : kBlockParts) {
    const auto count = static_cast<std::ptrdiff_t>(shape.layers * heads_of(part, shape));
    (arrays.*part.values).assign(at, at + count);
    at += count;
  }
  arrays.outside = *at;
  return arrays;
}

std::vector<double> to_list(const BlockValues& values, const RunShape& shape) {
  std::vector<double> list;
  for (const BlockPart& part : kBlockParts)
    list.insert(list.end(), (values.*part.values).begin(), (values.*part.values).end());
  list.push_back(values.outside);
  const std::size_t wanted = all_blocks(shape).size();
  if (list.size() != wanted)
    throw std::logic_error(fmt::format("{} numbers for {} blocks", list.size(), wanted));
  return list;
}

double sum(const BlockValues& values) {
  double total = values.outside;
  for (const BlockPart& part : kBlockParts)
    total = std::accumulate((values.*part.values).begin(), (values.*part.values).end(), total);
  return total;
}

}  // namespace sinkscope
