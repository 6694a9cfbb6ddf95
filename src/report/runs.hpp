// SPDX-License-Identifier: Apache-2.0
// Training runs as a person reads them in a terminal.
#pragma once

#include <string>
#include <vector>

#include "src/record/run_record.hpp"
#include "src/study/run_gate.hpp"

namespace sinkscope {

// One line per run: steps, loss, reward, gradient norms, spikes; then in words what each path's gradients are beside exact
// attention's, and every spike with its explained fraction, the blocks that have most of it, and its causes.
std::string render_runs(const RunRecord& record);

// One line per run and what failed, then PASSED, FAILED or NOTHING JUDGED.
std::string render_run_verdicts(const std::vector<RunVerdict>& verdicts);

}  // namespace sinkscope
