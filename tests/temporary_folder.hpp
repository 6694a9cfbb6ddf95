// SPDX-License-Identifier: Apache-2.0
// A folder of its own for each test, gone afterwards.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unistd.h>

#include "gtest/gtest.h"

namespace sinkscope {

class TemporaryFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) / ("sinkscope-test-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::int64_t files() const { return std::distance(std::filesystem::directory_iterator(folder_), {}); }

  std::filesystem::path folder_;
};

}  // namespace sinkscope
