// SPDX-License-Identifier: Apache-2.0
// A parallel loop over independent items.
#pragma once

#include <cstdint>
#include <functional>

namespace sinkscope {

// Runs body(i) for every i in [0, count) on `threads` threads (0: all hardware threads); items are taken in
// order by whoever is free, so a body must write only what its item owns. The first exception is rethrown
// here.
void parallel_for(std::int64_t count, int threads, const std::function<void(std::int64_t)>& body);

}  // namespace sinkscope
