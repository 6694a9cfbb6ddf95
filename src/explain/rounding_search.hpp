// SPDX-License-Identifier: Apache-2.0
// Which roundings account for the error of what is right but for them?
#pragma once

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "src/explain/candidate.hpp"
#include "src/explain/rounding.hpp"
#include "src/explain/state.hpp"

namespace sinkscope {

struct RoundingFit {
  RoundingModel model;
  std::vector<std::size_t> cells;  // of the state
  double share = 0;                // of the squared error, mean over the cells
  double residual_z = 0;           // the largest z_rms that is left
};

// Does a model leave little enough of what was wrong before it?
bool is_left_by_rounding(const Fit& before, const Fit& after);

using EmulatedKey =
    std::tuple<std::int64_t, std::int64_t, std::string>;  // batch, query head, the function's key

// What heads come to under a model, each computed once.
class EmulatedHeads {
 public:
  EmulatedHeads(const Case& c, RoundingModel model, bool backward, int threads)
      : c_(c), model_(std::move(model)), backward_(backward), threads_(threads) {}

  // Computes what is not there yet, in parallel.
  void prepare(const std::map<EmulatedKey, FunctionPtr>& functions);
  const HeadResult& at(std::int64_t batch, std::int64_t head, const FunctionPtr& function);

 private:
  const Case& c_;
  RoundingModel model_;
  bool backward_;
  int threads_;
  std::map<EmulatedKey, HeadResult> results_;
};

// Squared z of some rows of a head's out: under what is known of it, and with the model on top.
struct OutRows {
  double alone = 0, rounded = 0;
  bool is_nearer() const { return rounded <= 0.9 * alone; }
};
// Nothing where out says nothing.
std::optional<OutRows> sample_out(State& state, const RoundingModel& model, const Place& place);

// May a path that computes what is known of a head round as the model does? A cheap test: out must come nearer to what the
// path gave.
bool may_round(State& state, const RoundingModel& model, const Place& place);

// For those of `cells` whose heads compute, as far as is known, what a model can be run on: each goes to the model that
// leaves least of it, if that is little. A model for which no cell is left is not among the answers.
std::vector<RoundingFit> explain_by_rounding(State& state, const std::vector<std::size_t>& cells,
                                             int threads);

// Is an LSE wrong by so little, in every row, that its sum of exponentials alone can be meant?
bool is_of_exponentials(State& state, const CellState& cell);

// Those of `cells`, as one answer; nothing where there are none.
std::vector<RoundingFit> explain_by_exponentials(State& state, const std::vector<std::size_t>& cells);

}  // namespace sinkscope
