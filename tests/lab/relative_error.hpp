// SPDX-License-Identifier: Apache-2.0
// How far a replayed gradient is from exact attention's.
#pragma once

#include <cmath>

#include "src/lab/lab.hpp"

namespace sinkscope::lab {

inline bool any_block(const Block&) {
  return true;
}

// |g - g_e| / |g_e| of all blocks, or of those that a test picks.
inline double relative_error(const ReplayedPath& path, bool (*counts)(const Block&) = any_block) {
  double off = 0, exact = 0;
  for (const ReplayedBlock& block : path.blocks) {
    if (!counts(block.block)) continue;
    off += block.difference;
    exact += block.exact;
  }
  return std::sqrt(off / exact);
}

}  // namespace sinkscope::lab
