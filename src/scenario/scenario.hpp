// SPDX-License-Identifier: Apache-2.0
// A scenario: a model, a task, and runs of it through several attentions from the same start, as a TOML file says.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/lab/lab.hpp"

namespace sinkscope {

// Steps that are alike.
struct Phase {
  std::int64_t steps = 0;
  lab::StepSettings settings;
};

// What is looked at, or kept, beside the training. 0: never.
struct Watching {
  std::int64_t observe_every = 5;  // sink mass, gain, entropy, logits
  std::int64_t exact_every = 10;   // counterfactual gradients
  std::vector<std::string> paths;  // of those, beside the training path and exact attention
  // A run that is interrupted goes on from its newest checkpoint; there is one at its end where another run follows. 0: no other.
  std::int64_t checkpoint_every = 25;
  std::int64_t explained = 3;  // spikes of a run that are captured and whose causes are looked for
};

struct RunPlan {
  std::string name;
  std::vector<Phase> phases;
};

struct Scenario {
  std::string name;     // the file's stem
  std::string summary;  // one line for people
  std::string toml;     // the file
  lab::LabConfig lab;
  RunPlan start;  // trained once; every run goes on from its end. No phases: from the first weights
  std::vector<RunPlan> runs;
  Watching watching;
};

inline constexpr const char* kStartName = "start";

// Throws InputError naming the file, the key, the value seen and the value wanted; unknown keys are errors. What may be in
// a file: datasets/scenarios/README.md.
Scenario read_scenario(const std::string& path);
Scenario parse_scenario(std::string_view toml, const std::string& name);

// All that its steps and counterfactuals go through, each once.
std::vector<std::string> paths_of(const Scenario& scenario);

std::int64_t steps_of(const RunPlan& plan);

// The phase that a step belongs to, counted from 0. Throws std::out_of_range for a step after the last.
std::size_t phase_at(const RunPlan& plan, std::int64_t step);

}  // namespace sinkscope
