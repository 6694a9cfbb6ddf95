// SPDX-License-Identifier: Apache-2.0
// What of a batch and a layer attention must know beside its tensors.
#pragma once

#include <cstdint>
#include <vector>

namespace sinkscope::lab {

struct Geometry {
  std::int64_t window = 0;         // 0: none; counts the row's own key
  std::vector<std::int64_t> docs;  // lengths of packed documents of a batch of 1; empty: not packed
  // Of a model they are as here; what a fault asks of a path may differ.
  bool causal = true;
  double scale = 0;  // of the scores; 0: 1 / sqrt(d)
};

}  // namespace sinkscope::lab
