// SPDX-License-Identifier: Apache-2.0
#include "src/core/parallel.hpp"

#include <atomic>
#include <stdexcept>
#include <vector>

#include "gtest/gtest.h"

namespace sinkscope {
namespace {

TEST(ParallelFor, RunsEveryItemOnce) {
  for (const int threads : {0, 1, 2, 7}) {
    for (const std::int64_t count : {0, 1, 3, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
      parallel_for(count, threads, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
      for (const auto& run : runs) EXPECT_EQ(run, 1) << threads << " threads, " << count << " items";
    }
  }
}

TEST(ParallelFor, RethrowsAndStops) {
  for (const int threads : {1, 4}) {
    std::atomic<int> runs = 0;
    const auto body = [&](std::int64_t i) {
      if (i == 5) throw std::runtime_error("item 5");
      ++runs;
    };

    EXPECT_THROW(parallel_for(1'000'000, threads, body), std::runtime_error);

    EXPECT_LT(runs, 1'000'000 - 1) << threads << " threads";
  }
}

TEST(ParallelFor, KeepsTheTypeOfTheException) {
  struct Special {};
  EXPECT_THROW(parallel_for(8, 4, [](std::int64_t) { throw Special{}; }), Special);
}

}  // namespace
}  // namespace sinkscope
