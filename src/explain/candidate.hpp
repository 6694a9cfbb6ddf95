// SPDX-License-Identifier: Apache-2.0
// A mistake, or two at once, tried on every head that something is wrong with.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "src/explain/cause.hpp"
#include "src/explain/state.hpp"

namespace sinkscope {

// A head in a document.
using Place = std::tuple<std::int64_t, std::int64_t, std::int64_t>;  // batch, query head, document

// A cell that a candidate explains: whole, or only some of its rows.
struct Explained {
  std::size_t cell = 0;
  Fit fit;
  std::set<Place> places;     // where the mistake must have been made for it
  std::optional<Range> rows;  // of the cell
};

class Candidate {
 public:
  // `on_forward`: gradients are made from what is known of the head's out, not from what is known of the tensor.
  Candidate(std::vector<Hypothesis> hypotheses, std::vector<std::string> suffixes, bool on_forward);

  const std::vector<Hypothesis>& hypotheses() const { return hypotheses_; }
  const std::vector<std::string>& suffixes() const {
    return suffixes_;
  }  // one per hypothesis: which variant it is
  bool on_forward() const { return on_forward_; }
  int parameters() const;
  // One of its hypotheses by itself, in the same rows.
  Candidate only(std::size_t hypothesis) const;

  // What the head computes of a tensor under the candidate; null where it changes nothing.
  FunctionPtr function(const State& state, TensorName tensor, const Place& place) const;

  // Fits one cell with the mistake in all its heads, in rows, or in single heads of its group.
  std::optional<Explained> explain_cell(State& state, std::size_t cell) const;
  // The same where it need not fit, if it leaves less than a thousandth of the squared error.
  std::optional<Explained> nearly_explain(State& state, std::size_t cell,
                                          const std::set<Place>& places) const;

  // What score() asks for of all heads that are wrong: prepared before, in parallel, it is there.
  std::vector<HeadTask> tasks(const State& state) const;
  // Fills `explained` and `contradictions`. What is nearly explained counts where the same head has something else that
  // is explained.
  void score(State& state);
  std::vector<Explained> explained;
  std::size_t exact = 0;   // of them, the first ones, fit within the limits
  int contradictions = 0;  // cells that are right as they are and would not be under the candidate
  double residual = 0;     // the largest z_rms of an explained cell

 private:
  std::optional<Explained> explain_rows(State& state, std::size_t cell) const;
  std::optional<Explained> try_places(State& state, std::size_t cell, const std::set<Place>& places,
                                      bool nearly = false) const;
  FunctionOf at_places(const State& state, TensorName tensor, const std::set<Place>& places) const;
  void count_contradictions(State& state, const std::set<Place>& places);

  std::vector<Hypothesis> hypotheses_;
  std::vector<std::string> suffixes_;
  bool on_forward_;
  mutable std::map<std::pair<std::string, Place>, FunctionPtr> functions_;  // by the key of the base
  mutable std::map<Place, Range> rows_;  // where only these rows have the mistake
};

// Is it the same set of cells, or more?
bool covers(const Candidate& a, const Candidate& b);

}  // namespace sinkscope
