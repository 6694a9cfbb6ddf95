// SPDX-License-Identifier: Apache-2.0
#include "tools/sinkscope/compare_inputs.hpp"

#include <filesystem>
#include <map>

#include "fmt/format.h"

#include "src/capture/capture.hpp"
#include "src/core/error.hpp"
#include "tools/sinkscope/data_files.hpp"

namespace sinkscope::cli {
namespace {

// A file, a folder, or something that is plainly meant as a path.
bool looks_like_path(const std::string& input) {
  std::error_code error;
  return std::filesystem::exists(input, error) || input.ends_with(".safetensors") ||
         (input.find('/') != std::string::npos && input.find('=') == std::string::npos);
}

void add_input(const std::string& input, std::vector<Problem>& problems) {
  if (!looks_like_path(input)) {
    problems.push_back(parse_problem(input));
    return;
  }
  for (const std::string& path : captures_at(input)) {
    Problem problem;
    problem.capture = path;
    problems.push_back(problem);
  }
}

}  // namespace

std::vector<NamedProblem> collect_inputs(const std::vector<std::string>& inputs,
                                         const std::vector<std::string>& suites) {
  std::vector<Problem> problems;
  for (const std::string& suite : suites) {
    const std::vector<Problem> lines = read_suite(find_suite(suite));
    problems.insert(problems.end(), lines.begin(), lines.end());
  }
  for (const std::string& input : inputs) add_input(input, problems);
  if (problems.empty())
    throw InputError("nothing to compare: wanted a capture, a folder of captures, a problem line or --suite");

  std::vector<NamedProblem> named;
  std::map<std::string, int> uses;
  int number = 0;
  for (Problem& problem : problems) {
    std::string name;
    if (problem.capture.empty()) {
      name = fmt::format("p{:04}", ++number);
    } else {
      load_capture(problem);
      name = std::filesystem::path(problem.capture).stem().string();
    }
    const int use = ++uses[name];
    if (use > 1) name = fmt::format("{}_{}", name, use);
    named.push_back({std::move(name), std::move(problem)});
  }
  return named;
}

}  // namespace sinkscope::cli
