// SPDX-License-Identifier: Apache-2.0
// What `compare` and `explain` are asked about: captures, folders of captures, problem lines, suites and stored records,
// as named problems.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"

#include "src/compare/truth_kind.hpp"
#include "src/problem/problem.hpp"
#include "src/record/record.hpp"

namespace sinkscope::cli {

struct NamedProblem {
  std::string name;  // a capture's stem, else p0001, p0002, ...; unique
  Problem problem;
  std::string record;                        // the record that it is stored in, or ""
  std::shared_ptr<const CaseResult> stored;  // what that says of it
};

// Does the command take records whose tensors are stored?
enum class Records { kRefused, kTaken };

// Throws InputError for anything that could not be computed: every capture and record is opened and checked here
// already, so that nothing fails in the middle of a run.
std::vector<NamedProblem> collect_inputs(const std::vector<std::string>& inputs,
                                         const std::vector<std::string>& suites,
                                         Records records = Records::kRefused);

// Throws InputError where an output would replace an input; empty targets do not count.
void refuse_inputs_as_targets(const std::vector<std::string>& targets,
                              const std::vector<NamedProblem>& problems);

// Path names as they come from an option: blanks around them go. Throws InputError for an empty name or one that
// no case could have; `with_backend` allows PATH:BACKEND.
void tidy_path_names(std::vector<std::string>& names, bool with_backend);

// `--truth eigen|cuda` of a command.
void add_truth_option(CLI::App& command, std::string& truth);

// What the option names. Throws EnvironmentError where it cannot be computed here.
TruthKind chosen_truth(const std::string& truth);

}  // namespace sinkscope::cli
