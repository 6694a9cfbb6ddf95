// SPDX-License-Identifier: Apache-2.0
#include "src/explain/row_scalars.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sinkscope {

RowScalars row_scalars(const HeadData& head, const Roundings& r) {
  constexpr std::int64_t kAtOnce = 64;
  RowScalars scalars;
  std::vector<std::int64_t> keys(static_cast<std::size_t>(head.sk));
  std::iota(keys.begin(), keys.end(), 0);
  for (std::int64_t row = 0; row < head.sq; row += kAtOnce) {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(std::min(kAtOnce, head.sq - row)));
    std::iota(rows.begin(), rows.end(), row);
    RoundedBlock block(head, rows, keys);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto [lse, delta] = block.scalars(r, i);
      scalars.lse.push_back(lse);
      scalars.delta.push_back(delta);
    }
  }
  return scalars;
}

double rounded_dsink(const HeadData& head, const RowScalars& scalars) {
  double sum = 0;
  for (std::size_t row = 0; row < scalars.lse.size(); ++row) {
    const double lse = scalars.lse[row], sink = head.function.sink;
    const double p = sink == kNoSink ? 0 : sink == lse ? 1 : std::exp(sink - lse);
    sum += p * ((head.dlse.empty() ? 0 : head.dlse[row]) - scalars.delta[row]);
  }
  return sum;
}

}  // namespace sinkscope
