// SPDX-License-Identifier: Apache-2.0
// Tests that need a GPU skip without one, with the reason, or fail where SINKSCOPE_REQUIRE_GPU=1 promised one.
#pragma once

#include <cstdlib>
#include <string>
#include <string_view>

#include "gtest/gtest.h"

namespace sinkscope {

// To be called from SetUp(). `unavailable` says why there is no GPU to test on, and is empty where there is one.
// CTest takes a program that prints this sentence as skipped (cmake/SinkscopeTargets.cmake).
inline void require_gpu(const std::string& unavailable) {
  if (unavailable.empty()) return;
  const char* required = std::getenv("SINKSCOPE_REQUIRE_GPU");
  if (required != nullptr && std::string_view(required) == "1")
    FAIL() << "SINKSCOPE_REQUIRE_GPU is 1, but " << unavailable;
  GTEST_SKIP() << "no GPU to test on: " << unavailable;
}

}  // namespace sinkscope
