// SPDX-License-Identifier: Apache-2.0
#include "tools/sinkscope/compare_inputs.hpp"

#include <filesystem>
#include <map>

#include "fmt/format.h"

#include "src/capture/capture.hpp"
#include "src/core/error.hpp"
#include "src/paths/table.hpp"
#include "tools/sinkscope/data_files.hpp"

namespace sinkscope::cli {
namespace {

// A file, a folder, or something that is plainly meant as a path.
bool looks_like_path(const std::string& input) {
  if (input.starts_with("capture=")) return false;  // a problem line, as failures print it
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

// A problem line whose quotes were forgotten arrives as one argument per token.
void check_quotes(const std::vector<std::string>& inputs) {
  std::string line;
  int bare = 0;
  for (const std::string& input : inputs) {
    if (looks_like_path(input) || input.starts_with("capture=") || input.find(' ') != std::string::npos)
      continue;
    line += (bare++ == 0 ? "" : " ") + input;
  }
  if (bare > 1) {
    throw InputError(fmt::format(
        "{} problem lines of one token each: a problem line is one argument, wanted '{}'", bare, line));
  }
}

}  // namespace

void tidy_path_names(std::vector<std::string>& names, bool with_backend) {
  for (std::string& name : names) {
    const std::size_t first = name.find_first_not_of(" \t");
    if (first == std::string::npos) throw InputError("an empty path name, wanted names separated by commas");
    name = name.substr(first, name.find_last_not_of(" \t") - first + 1);
    if (name.find("recorded.") != std::string::npos) continue;  // known only with the case
    const bool cut = with_backend && !name.starts_with("fault:");
    find_path(cut ? name.substr(0, name.find(':')) : name, Case{});
  }
}

std::vector<NamedProblem> collect_inputs(const std::vector<std::string>& inputs,
                                         const std::vector<std::string>& suites) {
  check_quotes(inputs);
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

void add_truth_option(CLI::App& command, std::string& truth) {
  command
      .add_option("--truth", truth,
                  "What is held to be true: eigen, in double precision on the CPU, or cuda, the same on a "
                  "GPU, for long contexts")
      ->capture_default_str()
      ->check(CLI::IsMember({"eigen", "cuda"}));
}

TruthKind chosen_truth(const std::string& truth) {
  const TruthKind kind = truth == "cuda" ? TruthKind::kCuda : TruthKind::kEigen;
  require_available(kind);
  return kind;
}

}  // namespace sinkscope::cli
