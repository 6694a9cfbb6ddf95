// SPDX-License-Identifier: Apache-2.0
// The result as machines read it: JSON, and JUnit XML for CI servers.
#pragma once

#include <string>
#include <vector>

#include "src/record/record.hpp"

namespace sinkscope {

// One object: run info, gate, per case and path the verdict rows and sentences, exit code. Schema in
// src/report/README.md.
std::string to_json(const std::vector<CaseResult>& results, const RunInfo& info, const Gate& gate);

// One <testsuite> per case, one <testcase> per (path, tensor); observed failures are reported as skipped with
// a message.
std::string to_junit(const std::vector<CaseResult>& results);

}  // namespace sinkscope
