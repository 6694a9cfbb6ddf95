// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <sstream>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "src/problem/problem.hpp"

namespace sinkscope {
namespace {

// A `#` that no backslash protects starts a comment.
std::string without_comment(const std::string& line) {
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '\\') {
      ++i;
    } else if (line[i] == '#') {
      return line.substr(0, i);
    }
  }
  return line;
}

}  // namespace

std::vector<Problem> read_suite(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::istringstream text(read_file(path, "suite"));
  std::vector<Problem> problems;
  std::string line;
  for (int number = 1; std::getline(text, line); ++number) {
    line = without_comment(line);
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      Problem problem = parse_problem(line);
      if (!problem.capture.empty()) problem.capture = (folder / problem.capture).lexically_normal().string();
      problems.push_back(std::move(problem));
    } catch (const InputError& error) {
      throw InputError(fmt::format("{}:{}: {}", path, number, error.what()));
    }
  }
  if (problems.empty())
    throw InputError(fmt::format("suite {} has no problems, wanted at least one line", path));
  return problems;
}

}  // namespace sinkscope
