// SPDX-License-Identifier: Apache-2.0
// The result as a person reads it in a terminal.
#pragma once

#include <string>
#include <vector>

#include "src/record/compare_records.hpp"
#include "src/record/record.hpp"

namespace sinkscope {

struct TerminalStyle {
  bool colour = false;
  bool verbose = false;  // the full per-head table
  bool quiet = false;    // failures and the last line only
};

// One block per case: one line per (path, tensor), then the sentences.
std::string render_case(const CaseResult& result, const TerminalStyle& style);

// The last lines: counts of verdicts, each judged failure with its repro line, exit code in words.
std::string render_summary(const std::vector<VerdictRow>& rows, const TerminalStyle& style);

std::string render_changes(const std::vector<Change>& changes, const TerminalStyle& style);

}  // namespace sinkscope
