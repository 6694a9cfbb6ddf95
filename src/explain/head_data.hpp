// SPDX-License-Identifier: Apache-2.0
// One query head with what its path had at hand, widened.
#pragma once

#include <utility>
#include <vector>

#include "src/explain/head_function.hpp"
#include "src/explain/narrow.hpp"

namespace sinkscope {

// One query head as its path met it, widened.
struct HeadData {
  HeadFunction function;
  std::int64_t sq = 0, sk = 0, d = 0;
  Narrow format = Narrow::kNone;  // of the case
  std::vector<double> q, k, v, dout, dlse;
  std::vector<double> lse, delta;  // the truth's
  std::vector<double> own_lse;     // the path's; empty where it gives none
  std::vector<double> own_delta;   // dO . the path's out; likewise
  std::vector<std::pair<Range, Range>>
      blocks;  // [sq] the keys that a row sees; those its block of 64 rows sees
};
HeadData head_data(const Case& c, const Truth& truth, const Outputs& outputs, std::int64_t batch,
                   std::int64_t head);

}  // namespace sinkscope
