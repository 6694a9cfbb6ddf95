// SPDX-License-Identifier: Apache-2.0
#include "src/explain/candidate.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

namespace sinkscope {
namespace {

constexpr double kNearer = 0.5;  // of the squared error in the tensor's own units

bool is_own(TensorName tensor) {
  return tensor == TensorName::kOut || tensor == TensorName::kLse || tensor == TensorName::kDq;
}

Range hull_of_false(const std::vector<bool>& fits) {
  Range hull{static_cast<std::int64_t>(fits.size()), 0};
  for (std::int64_t row = 0; row < static_cast<std::int64_t>(fits.size()); ++row) {
    if (fits[static_cast<std::size_t>(row)]) continue;
    hull.first = std::min(hull.first, row);
    hull.end = row + 1;
  }
  return hull;
}

// The error itself must shrink too: a function with larger roundings allows more without being nearer.
bool is_enough(const Fit& base, const Fit& fit, bool nearly) {
  if (std::isfinite(base.z2) && !(fit.err2 <= kNearer * base.err2)) return false;
  return fit.fits || ((nearly || fit.nearly) && is_next_to_nothing(fit, base));
}

// What a mistake is looked for in.
std::vector<std::size_t> wrong_cells(const State& state) {
  std::vector<std::size_t> wrong;
  for (std::size_t i = 0; i < state.cells().size(); ++i) {
    const CellState& cell = state.cells()[i];
    if (cell.concerned && cell.fails && !cell.given_up) wrong.push_back(i);
  }
  return wrong;
}

}  // namespace

Candidate::Candidate(std::vector<Hypothesis> hypotheses, std::vector<std::string> suffixes, bool on_forward)
    : hypotheses_(std::move(hypotheses)), suffixes_(std::move(suffixes)), on_forward_(on_forward) {}

int Candidate::parameters() const {
  int sum = 0;
  for (const Hypothesis& h : hypotheses_) sum += h.cause->parameters;
  return sum;
}

Candidate Candidate::only(std::size_t hypothesis) const {
  Candidate one({hypotheses_[hypothesis]}, {suffixes_[hypothesis]}, on_forward_);
  one.rows_ = rows_;
  return one;
}

FunctionPtr Candidate::function(const State& state, TensorName tensor, const Place& place) const {
  const auto [batch, head, document] = place;
  const FunctionPtr base = state.base(on_forward_ ? TensorName::kOut : tensor, batch, head, document);
  const std::pair<std::string, Place> key{base->key, place};
  const auto known = functions_.find(key);
  if (known != functions_.end()) return known->second;
  HeadFunction changed = *base;
  changed.note.clear();
  bool applies = true;
  for (std::size_t i = 0; i < hypotheses_.size() && applies; ++i) {
    applies = hypotheses_[i].apply(changed, batch, head);
    changed.key += suffixes_[i];
  }
  FunctionPtr f;
  if (applies) {
    if (const auto rows = rows_.find(place); rows != rows_.end()) {
      changed.rows = rows->second;
      changed.elsewhere = base;
      changed.key += fmt::format("@{}-{}", rows->second.first, rows->second.end);
    }
    f = std::make_shared<const HeadFunction>(std::move(changed));
  }
  functions_[key] = f;
  return f;
}

FunctionOf Candidate::at_places(const State& state, TensorName tensor, const std::set<Place>& places) const {
  return [this, &state, tensor, &places](std::int64_t batch, std::int64_t head,
                                         std::int64_t document) -> FunctionPtr {
    const Place place{batch, head, document};
    return places.contains(place) ? function(state, tensor, place) : nullptr;
  };
}

std::optional<Explained> Candidate::try_places(State& state, std::size_t cell, const std::set<Place>& places,
                                               bool nearly) const {
  const CellState& cs = state.cells()[cell];
  std::set<Place> changed;
  for (const Place& place : places) {
    if (function(state, cs.cell.tensor, place)) changed.insert(place);
  }
  if (changed.empty()) return std::nullopt;
  const Fit fit = state.fit_under(cs, at_places(state, cs.cell.tensor, changed));
  if (!is_enough(cs.base, fit, nearly)) return std::nullopt;
  Explained found{cell, fit, changed, std::nullopt};
  if (const auto rows = rows_.find(*changed.begin()); is_own(cs.cell.tensor) && rows != rows_.end())
    found.rows = rows->second;
  return found;
}

// The mistake may have been made in some rows only: those that are wrong as it stands, from the first to the last.
std::optional<Explained> Candidate::explain_rows(State& state, std::size_t cell) const {
  const CellState& cs = state.cells()[cell];
  const Place place{cs.cell.batch, cs.cell.head, cs.cell.document};
  if (rows_.contains(place) ||
      state.base(cs.cell.tensor, cs.cell.batch, cs.cell.head, cs.cell.document)->elsewhere)
    return std::nullopt;
  const std::set<Place> only = {place};
  const Prediction whole = state.predicted(cs, at_places(state, cs.cell.tensor, only));
  const Range rows = hull_of_false(row_fits(cs.cell, state.predicted_base(cs), cs.limits));
  constexpr std::int64_t kFewest =
      4;  // the first rows see so few keys that many a mistake makes the same of them
  if (rows.size() < kFewest || rows.size() >= cs.cell.rows.size()) return std::nullopt;
  const Fit within = fit(cs.cell, whole, cs.limits, rows);
  if (!within.fits) return std::nullopt;
  const Range of_head = {cs.cell.rows.first + rows.first, cs.cell.rows.first + rows.end};
  rows_[place] = of_head;
  std::erase_if(functions_, [&](const auto& entry) { return entry.first.second == place; });
  std::optional<Explained> mixed = try_places(state, cell, only);
  if (!mixed) {
    rows_.erase(place);
    std::erase_if(functions_, [&](const auto& entry) { return entry.first.second == place; });
    return std::nullopt;
  }
  return mixed;
}

std::optional<Explained> Candidate::explain_cell(State& state, std::size_t cell) const {
  const Cell& c = state.cells()[cell].cell;
  std::set<Place> all;
  for (const auto& [batch, head] : state.heads_of(c)) {
    const std::int64_t documents =
        c.tensor == TensorName::kDsinks
            ? std::max<std::int64_t>(1, static_cast<std::int64_t>(state.problem().problem.shape.docs.size()))
            : 1;
    for (std::int64_t i = 0; i < documents; ++i)
      all.emplace(batch, head, c.tensor == TensorName::kDsinks ? i : c.document);
  }
  if (std::optional<Explained> whole = try_places(state, cell, all)) return whole;
  if (c.tensor == TensorName::kDsinks) {  // the gradient may come from any head
    const AttentionShape& s = state.problem().problem.shape;
    std::set<Place> every;
    for (const Place& place : all) {
      for (std::int64_t head = 0; head < s.hq; ++head)
        every.emplace(std::get<0>(place), head, std::get<2>(place));
    }
    if (std::optional<Explained> found = try_places(state, cell, every)) return found;
  }
  if (is_own(c.tensor) && function(state, c.tensor, *all.begin())) return explain_rows(state, cell);
  for (const Place& one : all) {
    if (all.size() < 2 || all.size() > 16) break;
    if (std::optional<Explained> single = try_places(state, cell, {one})) return single;
  }
  return std::nullopt;
}

std::optional<Explained> Candidate::nearly_explain(State& state, std::size_t cell,
                                                   const std::set<Place>& places) const {
  return try_places(state, cell, places, true);
}

std::vector<HeadTask> Candidate::tasks(const State& state) const {
  std::vector<HeadTask> tasks;
  for (const std::size_t i : wrong_cells(state)) {
    const Cell& c = state.cells()[i].cell;
    for (const auto& [batch, head] : state.heads_of(c)) {
      const FunctionPtr f = function(state, c.tensor, {batch, head, c.document});
      if (f) tasks.push_back({batch, head, f});
    }
  }
  return tasks;
}

void Candidate::score(State& state) {
  explained.clear();
  const std::vector<std::size_t> wrong = wrong_cells(state);
  // What belongs to one head first: it tells which heads have the mistake.
  std::set<Place> places;
  for (const std::size_t i : wrong) {
    if (!is_own(state.cells()[i].cell.tensor)) continue;
    if (std::optional<Explained> found = explain_cell(state, i)) {
      places.insert(found->places.begin(), found->places.end());
      explained.push_back(std::move(*found));
    }
  }
  for (const std::size_t i : wrong) {
    const Cell& c = state.cells()[i].cell;
    if (is_own(c.tensor)) continue;
    std::set<Place> of_cell;
    for (const Place& place :
         places) {  // heads of other groups too: they may read these keys, or use this sink
      const bool is_near = std::get<0>(place) == c.batch && std::get<2>(place) == c.document;
      if (c.tensor == TensorName::kDsinks || is_near) of_cell.insert(place);
    }
    std::optional<Explained> found = of_cell.empty() ? std::nullopt : try_places(state, i, of_cell);
    if (!found) found = explain_cell(state, i);
    if (found) explained.push_back(std::move(*found));
  }
  residual = 0;
  for (const Explained& e : explained) {
    places.insert(e.places.begin(), e.places.end());
    residual = std::max(residual, e.fit.z_rms);
  }
  exact = explained.size();
  for (const std::size_t i : wrong) {
    const bool is_done =
        std::any_of(explained.begin(), explained.begin() + static_cast<std::ptrdiff_t>(exact),
                    [&](const Explained& e) { return e.cell == i; });
    const Cell& c = state.cells()[i].cell;
    if (is_done || c.tensor == TensorName::kDsinks) continue;
    std::set<Place> of_cell;
    for (const auto& [batch, head] : state.heads_of(c)) {
      if (places.contains({batch, head, c.document})) of_cell.emplace(batch, head, c.document);
    }
    if (of_cell.empty()) continue;
    if (std::optional<Explained> found = nearly_explain(state, i, of_cell))
      explained.push_back(std::move(*found));
  }
  count_contradictions(state, places);
}

void Candidate::count_contradictions(State& state, const std::set<Place>& places) {
  contradictions = 0;
  for (const CellState& cs : state.cells()) {
    if (!cs.concerned || cs.fails || cs.fact) continue;
    const FunctionOf changed = at_places(state, cs.cell.tensor, places);
    bool touched = false;
    for (const auto& [batch, head] : state.heads_of(cs.cell))
      touched = touched || changed(batch, head, cs.cell.document) != nullptr;
    if (touched && !state.fit_under(cs, changed).fits) ++contradictions;
  }
}

bool covers(const Candidate& a, const Candidate& b) {
  return std::all_of(b.explained.begin(), b.explained.begin() + static_cast<std::ptrdiff_t>(b.exact),
                     [&](const Explained& wanted) {
                       return std::any_of(a.explained.begin(), a.explained.end(),
                                          [&](const Explained& e) { return e.cell == wanted.cell; });
                     });
}

}  // namespace sinkscope
