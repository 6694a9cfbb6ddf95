// SPDX-License-Identifier: Apache-2.0
// The main job: problem -> inputs -> paths and truth -> diff -> gate.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "src/gate/gate.hpp"
#include "src/paths/path.hpp"
#include "src/record/record.hpp"

namespace sinkscope {

struct CompareOptions {
  std::vector<std::string> paths;  // empty: every computed path and every recorded one
  std::vector<std::string>
      required;    // PATH[:BACKEND] that must have run: an unmet one is an environment error
  int repeat = 2;  // runs of each computed path, compared bit by bit
  int threads = 0;
  bool keep_outputs = false;  // for --save-tensors
};

// Told what is going on: "calm_layer1", "truth", 0.3 of this case done.
using Progress = std::function<void(std::string_view name, std::string_view stage, double share)>;

// Runs one case through the truth and every path. A path that breaks gives a verdict, not an exception.
CaseResult compare_case(const Case& c, const Gate& gate, const CompareOptions& options,
                        const Progress& progress = {});

}  // namespace sinkscope
