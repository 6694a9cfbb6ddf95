// SPDX-License-Identifier: Apache-2.0
// What the lab says of a step, as rows of the record.
#pragma once

#include <vector>

#include "src/lab/lab.hpp"
#include "src/record/run_record.hpp"
#include "src/spike/explained.hpp"

namespace sinkscope {

RunShape shape_of(const lab::ModelShape& model);

// All but step, phase, seconds and z. What a supervised step does not have is NaN.
StepRow step_row(const lab::StepResult& result, lab::StepKind kind, const RunShape& shape);

// One row per path, exact attention's first.
std::vector<ReplayRow> replay_rows(const std::vector<lab::ReplayedPath>& paths, std::int64_t step,
                                   const RunShape& shape);

// In the order of all_blocks().
std::vector<BlockNorms> block_norms(const lab::ReplayedPath& path, const RunShape& shape);

}  // namespace sinkscope
