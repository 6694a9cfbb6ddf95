// SPDX-License-Identifier: Apache-2.0
// Runs the built command as a user does, and keeps what it wrote.
#pragma once

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

#include "gtest/gtest.h"

namespace sinkscope::tools {

namespace fs = std::filesystem;

struct Ran {
  int code = -1;
  std::string out, err;
};

inline std::string content_of(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

// A folder of its own for each test; `sinkscope(arguments)` runs in a shell, in the source folder.
class CommandTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("sinkscope-command-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::int64_t files() const { return std::distance(fs::directory_iterator(folder_), {}); }

  static Ran shell(const std::string& line) {
    const fs::path out = fs::path(testing::TempDir()) / ("sinkscope-out-" + std::to_string(::getpid()));
    const fs::path err = out.string() + ".err";
    const int status =
        std::system(("( " + line + " ) >" + out.string() + " 2>" + err.string() + " </dev/null").c_str());
    Ran ran = {WIFEXITED(status) ? WEXITSTATUS(status) : -1, content_of(out), content_of(err)};
    fs::remove(out);
    fs::remove(err);
    return ran;
  }
  static Ran sinkscope(const std::string& arguments, const std::string& environment = "") {
    return shell(environment + " " + SINKSCOPE_EXECUTABLE + " " + arguments);
  }

  fs::path folder_;
};

}  // namespace sinkscope::tools
