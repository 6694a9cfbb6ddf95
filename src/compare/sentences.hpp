// SPDX-License-Identifier: Apache-2.0
// What happened, in one sentence per finding, from the metrics alone ("flash_attention_2 ignores the sink:
// head 6 is 3.48x too large, 3.48x predicted from its sink mass").
#pragma once

#include <string>
#include <vector>

#include "src/record/record.hpp"

namespace sinkscope {

std::vector<std::string> describe(const PathResult& result, const HeadFacts& facts,
                                  const AttentionShape& shape);

}  // namespace sinkscope
