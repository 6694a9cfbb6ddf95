// SPDX-License-Identifier: Apache-2.0
// What `compare` is asked to compute: captures, folders of captures, problem lines and suites, as named
// problems.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"

#include "src/compare/truth_kind.hpp"
#include "src/problem/problem.hpp"

namespace sinkscope::cli {

struct NamedProblem {
  std::string name;  // a capture's stem, else p0001, p0002, ...; unique
  Problem problem;
};

// Throws InputError for anything that could not be computed: every capture is opened and checked here
// already, so that nothing fails in the middle of a run.
std::vector<NamedProblem> collect_inputs(const std::vector<std::string>& inputs,
                                         const std::vector<std::string>& suites);

// Path names as they come from an option: blanks around them go. Throws InputError for an empty name or one that
// no case could have; `with_backend` allows PATH:BACKEND.
void tidy_path_names(std::vector<std::string>& names, bool with_backend);

// `--truth eigen|cuda` of a command.
void add_truth_option(CLI::App& command, std::string& truth);

// What the option names. Throws EnvironmentError where it cannot be computed here.
TruthKind chosen_truth(const std::string& truth);

}  // namespace sinkscope::cli
