// SPDX-License-Identifier: Apache-2.0
// What explain found, for people and for machines.
#pragma once

#include <string>

#include "nlohmann/json_fwd.hpp"

#include "src/record/record.hpp"

namespace sinkscope {

// One block per case: of each path that ran one paragraph per finding, where the error of each tensor comes from, and what
// that means for training; with `verbose` every head of these.
std::string render_findings(const CaseResult& result, bool verbose);

// The list `findings`, one object per cause of a path. Schema in src/report/README.md.
nlohmann::json findings_json(const std::vector<CaseResult>& results);
}  // namespace sinkscope
