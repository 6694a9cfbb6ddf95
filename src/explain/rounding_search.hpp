// SPDX-License-Identifier: Apache-2.0
// Which roundings account for the error of what is right but for them?
#pragma once

#include <vector>

#include "src/explain/rounding.hpp"
#include "src/explain/state.hpp"

namespace sinkscope {

struct RoundingFit {
  RoundingModel model;
  std::vector<std::size_t> cells;  // of the state
  double share = 0;                // of the squared error, mean over the cells
  double residual_z = 0;           // the largest z_rms that is left
};

// For those of `cells` of which nothing but the right function is known: each goes to the model that leaves least of it,
// if that is little. A model for which no cell is left is not among the answers.
std::vector<RoundingFit> explain_by_rounding(State& state, const std::vector<std::size_t>& cells,
                                             int threads);

// Is an LSE wrong by so little, in every row, that its sum of exponentials alone can be meant?
bool is_of_exponentials(State& state, const CellState& cell);

// Those of `cells`, as one answer; nothing where there are none.
std::vector<RoundingFit> explain_by_exponentials(State& state, const std::vector<std::size_t>& cells);

}  // namespace sinkscope
