// SPDX-License-Identifier: Apache-2.0
// Which mistake is it? Names the cause of what a path got wrong, or says that it does not know.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/diff/diff.hpp"
#include "src/explain/finding.hpp"
#include "src/gate/gate.hpp"
#include "src/inputs/case.hpp"

namespace sinkscope {

// What several paths of one case share: what heads compute under the right function.
class Results;
std::shared_ptr<Results> shared_results(const Case& c, int threads);

struct ExplainOptions {
  int threads = 0;
  std::vector<std::string> withheld = {};  // causes that are taken not to exist, to see what becomes of them
  std::shared_ptr<Results> results = nullptr;  // of this case, by shared_results(); none: made anew
  std::function<void(std::string_view)> progress = nullptr;  // told what is looked at: "dq of head 3"
};

// What explain says of a path.
struct Explanation {
  std::vector<Finding> findings;  // one per cause, the largest effect first; {none} for a path that passes
};

// `metrics` are those of `outputs`; only heads that fail the gate are explained. `dsinks_missing`: the path was asked
// for dsinks and gave none. The inputs must be fit to be judged by.
Explanation explain(const Case& c, const Gate& gate, const Outputs& outputs,
                    const std::vector<TensorMetrics>& metrics, bool dsinks_missing,
                    const ExplainOptions& options = {});

// A cause that this case could not show, and why.
struct BlindSpot {
  std::string cause;
  std::string reason;
};

// Causes whose mistake, made in every head, would change no output of this case by more than the gate's limits.
std::vector<BlindSpot> blind_spots(const Case& c, const Gate& gate, int threads = 0);

}  // namespace sinkscope
