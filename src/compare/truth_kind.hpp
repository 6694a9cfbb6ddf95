// SPDX-License-Identifier: Apache-2.0
// Which computation of the truth a run measures against.
#pragma once

#include <string>
#include <string_view>

#include "src/inputs/case.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {

enum class TruthKind { kEigen, kCuda };

// "eigen", "cuda": as in `--truth`, in the record's attribute `truth` and in the line that reproduces a row.
std::string_view name_of(TruthKind kind);

// Why it cannot be computed here, or empty.
std::string unavailable(TruthKind kind);

// Throws EnvironmentError, with the reason, where it cannot be.
void require_available(TruthKind kind);

// The truth of a case; `threads` are those of the CPU. Throws EnvironmentError where it is unavailable.
Truth truth_of(const Case& c, TruthKind kind, int threads);

}  // namespace sinkscope
