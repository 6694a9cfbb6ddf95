// SPDX-License-Identifier: Apache-2.0
// What explain found, for people and for machines.
#pragma once

#include <string>

#include "nlohmann/json_fwd.hpp"

#include "src/record/record.hpp"

namespace sinkscope {

// One block per case: one paragraph per finding of each path that ran, then where the error of each tensor comes from.
// `verbose`: of each head.
std::string render_findings(const CaseResult& result, bool verbose = false);

// The list `findings`, one object per cause of a path. Schema in src/report/README.md.
nlohmann::json findings_json(const std::vector<CaseResult>& results);
}  // namespace sinkscope
