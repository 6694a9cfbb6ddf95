// SPDX-License-Identifier: Apache-2.0
// Mistakes that a cell shows by itself, whatever function was computed: rows of zeros, rows twice as large, another
// head's numbers.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "src/explain/cells.hpp"

namespace sinkscope {

// `expected` is what the cell should be as a consequence of the fact.
struct Fact {
  std::string_view cause;
  Range rows;  // of the cell
  std::string note;
  Prediction expected;
};

// The fact that explains a cell which should be `base`, or nothing. `holder`, asked last, names another cell that holds the same
// numbers and should not ("out of head 3"), for stale; empty: there is none.
std::optional<Fact> find_fact(const Cell& cell, const Prediction& base, const CellLimits& limits,
                              const std::function<std::string()>& holder);

}  // namespace sinkscope
