// SPDX-License-Identifier: Apache-2.0
#include "tools/sinkscope/compare_inputs.hpp"

#include <filesystem>
#include <fstream>
#include <map>

#include "fmt/format.h"

#include "src/capture/capture.hpp"
#include "src/core/error.hpp"
#include "src/paths/table.hpp"
#include "src/record/stored.hpp"
#include "tools/sinkscope/data_files.hpp"

namespace sinkscope::cli {
namespace {

// A file, a folder, or something that is plainly meant as a path.
bool looks_like_path(const std::string& input) {
  if (input.starts_with("capture=")) return false;  // a problem line, as failures print it
  std::error_code error;
  return std::filesystem::exists(input, error) || input.ends_with(".safetensors") || input.ends_with(".h5") ||
         (input.find('/') != std::string::npos && input.find('=') == std::string::npos);
}

// By its name, or by the eight bytes that every HDF5 file begins with.
bool looks_like_record(const std::string& input) {
  if (input.ends_with(".h5")) return true;
  std::error_code error;
  if (!std::filesystem::is_regular_file(input, error)) return false;
  std::string start(8, '\0');
  std::ifstream(input, std::ios::binary).read(start.data(), 8);
  return start == "\x89HDF\r\n\x1a\n";
}

void add_record(const std::string& path, std::vector<NamedProblem>& problems) {
  const auto record = std::make_shared<const Record>(read_record(path));
  require_tensors(path, *record);
  for (const CaseResult& result : record->cases) {
    problems.push_back({result.name, parse_problem(result.problem_line), path,
                        std::shared_ptr<const CaseResult>(record, &result)});
  }
}

void add_input(const std::string& input, Records records, std::vector<NamedProblem>& problems) {
  if (!looks_like_path(input)) {
    problems.push_back({"", parse_problem(input), "", nullptr});
    return;
  }
  if (looks_like_record(input)) {
    if (records == Records::kTaken) return add_record(input, problems);
    throw InputError(
        fmt::format("{} is a record: wanted a capture, a folder of captures or a problem line "
                    "(explain takes records, gate and diff too)",
                    input));
  }
  for (const std::string& path : captures_at(input)) {
    Problem problem;
    problem.capture = path;
    problems.push_back({"", problem, "", nullptr});
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
                                         const std::vector<std::string>& suites, Records records) {
  check_quotes(inputs);
  std::vector<NamedProblem> problems;
  for (const std::string& suite : suites) {
    for (Problem& line : read_suite(find_suite(suite)))
      problems.push_back({"", std::move(line), "", nullptr});
  }
  for (const std::string& input : inputs) add_input(input, records, problems);
  if (problems.empty())
    throw InputError("nothing to compare: wanted a capture, a folder of captures, a problem line or --suite");

  std::map<std::string, int> uses;
  int number = 0;
  for (NamedProblem& named : problems) {
    if (named.problem.capture.empty() && !named.stored) {
      named.name = fmt::format("p{:04}", ++number);
    } else if (!named.stored) {
      load_capture(named.problem);
      named.name = std::filesystem::path(named.problem.capture).stem().string();
    }
    const int use = ++uses[named.name];
    if (use > 1) named.name = fmt::format("{}_{}", named.name, use);
  }
  return problems;
}

void refuse_inputs_as_targets(const std::vector<std::string>& targets,
                              const std::vector<NamedProblem>& problems) {
  for (const std::string& target : targets) {
    for (const NamedProblem& named : problems) {
      const std::string& input = named.stored ? named.record : named.problem.capture;
      std::error_code error;
      if (target.empty() || input.empty()) continue;
      if (std::filesystem::equivalent(target, input, error))
        throw InputError(fmt::format("{} is an input: wanted another file to write to", target));
    }
  }
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
