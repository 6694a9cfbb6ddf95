// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <string>
#include <unistd.h>

#include "gtest/gtest.h"

#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "src/problem/problem.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

class Suite : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("sinkscope-suite-" + std::to_string(::getpid()));
    fs::create_directories(folder_ / "suites");
    path_ = (folder_ / "suites" / "a.txt").string();
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string error_of(const std::string& text) const {
    write_file(path_, text, true);
    try {
      read_suite(path_);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }

  fs::path folder_;
  std::string path_;
};

TEST_F(Suite, SkipsCommentsAndBlankLines) {
  write_file(path_, "# a suite\n\n  \nb2 sq8 # two rows\r\n\tsq16\nsq32", false);

  const std::vector<Problem> problems = read_suite(path_);

  ASSERT_EQ(problems.size(), 3U);
  EXPECT_EQ(problems[0], parse_problem("b2 sq8"));
  EXPECT_EQ(problems[1], parse_problem("sq16"));
  EXPECT_EQ(problems[2], parse_problem("sq32"));
}

TEST_F(Suite, TakesCapturePathsRelativeToItsFolder) {
  write_file(path_, "capture=../captures/c\\#\\ 1.safetensors layout=bshd\ncapture=/data/c.safetensors\n",
             false);

  const std::vector<Problem> problems = read_suite(path_);

  EXPECT_EQ(problems.at(0).capture, (folder_ / "captures" / "c# 1.safetensors").string());
  EXPECT_EQ(problems.at(0).layout, Layout::kBshd);
  EXPECT_EQ(problems.at(1).capture, "/data/c.safetensors");
}

TEST_F(Suite, NamesTheLineThatIsWrong) {
  const std::string message = error_of("sq8\n\n# comment\nsq8 fp8\n");

  EXPECT_NE(message.find(path_ + ":4:"), std::string::npos) << message;
  EXPECT_NE(message.find("'fp8'"), std::string::npos) << message;
}

TEST_F(Suite, MustHaveAProblem) {
  EXPECT_NE(error_of("# nothing\n").find("no problems"), std::string::npos);
  EXPECT_NE(error_of("").find("no problems"), std::string::npos);
  EXPECT_THROW(read_suite((folder_ / "missing.txt").string()), InputError);
  EXPECT_THROW(read_suite(folder_.string()), InputError);
}

}  // namespace
}  // namespace sinkscope
