// SPDX-License-Identifier: Apache-2.0
// Where the error of a right path comes from, for people and for machines.
#pragma once

#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "src/record/record.hpp"

namespace sinkscope {

// One line per tensor, the mean over its heads; `verbose`: one per head too. Heads whose bias has a known source always
// have theirs.
std::string render_stages(const std::vector<HeadStages>& stages, bool verbose);

// The list `stages`, one object per head of a tensor of a path. Schema in src/report/README.md.
nlohmann::json stages_json(const std::vector<CaseResult>& results);

}  // namespace sinkscope
