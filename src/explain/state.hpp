// SPDX-License-Identifier: Apache-2.0
// How far a path is explained: its cells, what each head is known to compute, and what that leaves.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "src/explain/cells.hpp"
#include "src/explain/results.hpp"

namespace sinkscope {

// Of an error that was `before`: what a cause leaves that explains nearly all of it, counted in z or as it is. The sigma of a
// mistaken function knows nothing of how else it was computed: dO that was rounded once more, say.
inline bool is_next_to_nothing(const Fit& left, const Fit& before) {
  constexpr double kNextToNothing = 1e-2;
  return left.z2 <= kNextToNothing * before.z2 || left.err2 <= kNextToNothing * before.err2;
}

struct CellState {
  Cell cell;
  CellLimits limits;
  bool concerned = false;  // in a group of heads of which something fails
  bool fails = false;      // the gate failed the head, and the base does not fit
  bool given_up = false;
  bool rounded = false;  // given up, but a rounding model accounts for what is left
  Fit base;              // under what is known by now
  // Does what is known leave next to nothing, though more than the limits?
  bool is_nearly_explained() const { return !base.fits && base.nearly && is_next_to_nothing(base, first); }
  std::vector<bool>
      wrong_rows;  // that do not fit it; empty where every row does and only their mean does not
  Fit first;       // under the truth
  std::optional<Prediction> fact;  // what a fact says of it, in place of the base
};

// The longest run of its rows that are wrong, or the middle 32 of it; nothing where none is.
std::optional<Range> worst_rows(const CellState& cs);

class State {
 public:
  // `failed[i]`: did the gate fail the head of cell i?
  State(const Case& c, const Gate& gate, std::vector<Cell> cells, const std::vector<bool>& failed,
        std::shared_ptr<Results> results);

  const Case& problem() const { return case_; }
  std::vector<CellState>& cells() { return cells_; }
  const std::vector<CellState>& cells() const { return cells_; }
  Results& results() { return *results_; }
  bool backward() const { return case_.dout.given(); }

  // What a head is known to compute of a tensor in a document.
  FunctionPtr base(TensorName tensor, std::int64_t batch, std::int64_t head, std::int64_t document) const;
  void set_base(TensorName tensor, std::int64_t batch, std::int64_t head, std::int64_t document,
                FunctionPtr f);
  // Fits the cells of a tensor again.
  void refit(TensorName tensor);

  // A cell with some functions in place of the base; null where the base holds.
  Prediction predicted(const CellState& cell, const FunctionOf& override_of);
  Fit fit_under(const CellState& cell, const FunctionOf& override_of);
  Prediction predicted_base(const CellState& cell);

  // The query heads that a cell depends on.
  std::vector<std::pair<std::int64_t, std::int64_t>> heads_of(const Cell& cell) const;
  // The path's own numbers; empty where it gives none.
  std::vector<double> got(TensorName tensor, std::int64_t batch, std::int64_t head) const;

  // Forgets results of functions that nothing is known to compute, but for the right one.
  void forget_results();

 private:
  std::size_t index(std::int64_t batch, std::int64_t head, std::int64_t document) const;
  static bool needs_backward(TensorName tensor) {
    return tensor != TensorName::kOut && tensor != TensorName::kLse;
  }

  const Case& case_;
  std::int64_t documents_;
  std::vector<CellState> cells_;
  std::shared_ptr<Results> results_;
  std::array<std::vector<FunctionPtr>, kTensorNames.size()> base_;  // [b, hq, documents] each
};

}  // namespace sinkscope
