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

#include "tests/temporary_folder.hpp"

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

// `sinkscope(arguments)` runs in a shell, in the source folder.
class CommandTest : public TemporaryFolder {
 protected:
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
};

}  // namespace sinkscope::tools
