// SPDX-License-Identifier: Apache-2.0
// The main job: problem -> inputs -> paths and truth -> diff -> gate.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "src/compare/truth_kind.hpp"
#include "src/gate/gate.hpp"
#include "src/inputs/path.hpp"
#include "src/record/record.hpp"

namespace sinkscope {

struct CompareOptions {
  std::vector<std::string> paths;  // empty: every computed path and every recorded one
  int repeat = 2;                  // runs of each computed path, compared bit by bit
  int threads = 0;
  TruthKind truth = TruthKind::kEigen;
  bool keep_outputs = false;  // for --save-tensors
  bool explain = false;       // name the cause of what fails
};

// Told what is going on: "calm_layer1", "truth", 0.3 of this case done.
using Progress = std::function<void(std::string_view name, std::string_view stage, double share)>;

// Runs one case through the truth and every path that the options name. A path that breaks gives a verdict,
// not an exception. Throws InputError for unknown names, EnvironmentError where the truth cannot be computed.
CaseResult compare_case(const Case& c, const Gate& gate, const CompareOptions& options,
                        const Progress& progress = {});

// The same with the paths given.
CaseResult compare_case(const Case& c, const Gate& gate, const CompareOptions& options,
                        const std::vector<Path>& paths, const Progress& progress);

// One sentence for each PATH[:BACKEND] that did not run, or ran on another backend.
std::vector<std::string> unmet_requirements(const CaseResult& result,
                                            const std::vector<std::string>& required);

// Judges a recorded case again: new verdicts for every tensor that was measured; skipped and broken paths
// stay so.
void rejudge(CaseResult& result, const Gate& gate);

}  // namespace sinkscope
