// SPDX-License-Identifier: Apache-2.0
// The engine's answer where nothing fits because the path rounds its scores too: a mistake, and a rounding model on top.
#include <algorithm>
#include <cmath>

#include "src/explain/engine.hpp"
#include "src/explain/rounding_search.hpp"

namespace sinkscope {
namespace {

constexpr std::size_t kTried = 6;          // mistakes that alone leave least
constexpr double kLeftOfHypothesis = 0.1;  // the model leaves less than this of what the mistake alone leaves
constexpr double kLeftOfModel = 0.1;       // ... and of what the model alone leaves
constexpr double kAlike =
    2;  // mistakes that leave within this factor of each other are looked at in all heads

// A mistake with a model on top.
struct Rounded {
  Candidate candidate;
  RoundingModel model;
  double left = 0;  // of the squared z of the cell that was looked at
};

bool is_own(TensorName tensor) {
  return !is_of_keys(tensor) && tensor != TensorName::kDsinks;
}

std::int64_t documents_of(const State& state) {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(state.problem().problem.shape.docs.size()));
}

// The heads that a cell is made of, in its document; of dsinks in every one.
std::set<Place> places_of(const State& state, const Cell& cell) {
  std::set<Place> places;
  for (const auto& [batch, head] : state.heads_of(cell)) {
    const bool is_dsinks = cell.tensor == TensorName::kDsinks;
    for (std::int64_t document = 0; document < (is_dsinks ? documents_of(state) : 1); ++document)
      places.emplace(batch, head, is_dsinks ? document : cell.document);
  }
  return places;
}

// What each head computes of a cell with the candidate made at some places; null: nowhere at all, or a model cannot follow.
FunctionOf functions_at(const State& state, const Candidate& candidate, TensorName tensor,
                        const std::set<Place>& places) {
  return [&, tensor](std::int64_t batch, std::int64_t head, std::int64_t document) -> FunctionPtr {
    const Place place{batch, head, document};
    const FunctionPtr changed = places.contains(place) ? candidate.function(state, tensor, place) : nullptr;
    return changed ? changed : state.base(tensor, batch, head, document);
  };
}

// The same cell under the same functions, without and with the model.
struct Pair {
  Fit alone, rounded;
};

Pair fits_of(State& state, const CellState& cs, const FunctionOf& function, EmulatedHeads& emulated) {
  Prediction prediction = state.predicted(cs, function);
  Pair fits;
  fits.alone = fit(cs.cell, prediction, cs.limits, std::nullopt, cs.wrong_rows);
  const ResultOf result = [&](std::int64_t batch, std::int64_t head,
                              std::int64_t document) -> const HeadResult& {
    return emulated.at(batch, head, function(batch, head, document));
  };
  prediction.value = predict(state.problem(), cs.cell, function, result).value;
  fits.rounded = fit(cs.cell, prediction, cs.limits, std::nullopt, cs.wrong_rows);
  return fits;
}

bool can_emulate_all(const FunctionOf& function, const std::set<Place>& places) {
  return std::all_of(places.begin(), places.end(), [&](const Place& place) {
    return can_emulate(*function(std::get<0>(place), std::get<1>(place), std::get<2>(place)));
  });
}

// What is left of a cell's worst rows, or of all of it where rows are sums over heads' rows, without and with the model.
std::optional<std::pair<double, double>> left_of(State& state, const CellState& cs,
                                                 const FunctionOf& function, const RoundingModel& model,
                                                 int threads) {
  if (!can_emulate_all(function, places_of(state, cs.cell))) return std::nullopt;
  const std::optional<Range> rows = is_own(cs.cell.tensor) ? worst_rows(cs) : std::nullopt;
  if (!rows) {
    EmulatedHeads emulated(state.problem(), model, true, threads);
    const Pair fits = fits_of(state, cs, function, emulated);
    return std::pair(fits.alone.z2, fits.rounded.z2);
  }
  const auto [tensor, batch, head, document] =
      std::tuple(cs.cell.tensor, cs.cell.batch, cs.cell.head, cs.cell.document);
  Prediction prediction = state.predicted(cs, function);
  const double alone = fit(cs.cell, prediction, cs.limits, rows).z2;
  const Range of_head{cs.cell.rows.first + rows->first, cs.cell.rows.first + rows->end};
  const HeadResult some = emulate(state.problem(), batch, head, *function(batch, head, document), model,
                                  of_head, tensor == TensorName::kDq);
  prediction.value =
      predict(state.problem(), cs.cell, function,
              [&](std::int64_t, std::int64_t, std::int64_t) -> const HeadResult& { return some; })
          .value;
  return std::pair(alone, fit(cs.cell, prediction, cs.limits, rows).z2);
}

// Every wrong cell that the mistake explains, alone or with the model on top.
std::vector<Explained> explained_by(State& state, const Rounded& rounded, int threads) {
  EmulatedHeads emulated(state.problem(), rounded.model, true, threads);
  std::map<EmulatedKey, FunctionPtr> functions;
  std::vector<HeadTask> tasks;
  std::vector<std::size_t> wrong;
  for (std::size_t i = 0; i < state.cells().size(); ++i) {
    const CellState& cs = state.cells()[i];
    if (!cs.concerned || !cs.fails || cs.given_up || cs.cell.tensor == TensorName::kLse) continue;
    wrong.push_back(i);
    for (const auto& [batch, head, document] : places_of(state, cs.cell)) {
      const FunctionPtr f = rounded.candidate.function(state, cs.cell.tensor, {batch, head, document});
      if (!f || !can_emulate(*f)) continue;
      functions[{batch, head, f->key}] = f;
      tasks.push_back({batch, head, f});
    }
  }
  emulated.prepare(functions);
  state.results().prepare(tasks, state.backward());
  std::vector<Explained> explained;
  std::set<Place> places;  // what belongs to one head tells which heads have the mistake
  for (const bool own : {true, false}) {
    for (const std::size_t i : wrong) {
      const CellState& cs = state.cells()[i];
      if (is_own(cs.cell.tensor) != own) continue;
      std::set<Place> here = places_of(state, cs.cell);
      for (const Place& place : places) {  // others too: they may read these keys, or use this sink
        const bool is_near = std::get<0>(place) == cs.cell.batch && std::get<2>(place) == cs.cell.document;
        if (!own && (cs.cell.tensor == TensorName::kDsinks || is_near)) here.insert(place);
      }
      std::erase_if(here, [&](const Place& place) {
        return !rounded.candidate.function(state, cs.cell.tensor, place);
      });
      const FunctionOf function = functions_at(state, rounded.candidate, cs.cell.tensor, here);
      if (here.empty() || !can_emulate_all(function, here)) continue;
      const Pair fits = fits_of(state, cs, function, emulated);
      const Fit& best = fits.alone.fits ? fits.alone : fits.rounded;
      if (!(best.z2 <= kLeftOfModel * cs.base.z2)) continue;
      // Where the heads are known to have the mistake, what it leaves of their sums is another question.
      const bool is_known = !own && !places.empty();
      if (!is_known && !fits.alone.fits && !is_left_by_rounding(fits.alone, fits.rounded)) continue;
      explained.push_back({i, fits.alone, here, std::nullopt});
      if (own) places.insert(here.begin(), here.end());
    }
  }
  return explained;
}

}  // namespace

bool Engine::accept_rounded(std::size_t cell) {
  const CellState& cs = state_.cells()[cell];
  const std::vector<RoundingModel> models = rounding_models(state_.problem());
  if (models.empty() || cs.cell.tensor == TensorName::kLse || cs.cell.tensor == TensorName::kDsinks)
    return false;
  std::vector<const std::pair<double, Candidate>*> tried;
  for (const auto& one : tried_[cell]) {
    if (one.first < 1) tried.push_back(&one);
  }
  std::stable_sort(tried.begin(), tried.end(),
                   [](const auto* a, const auto* b) { return a->first < b->first; });
  tried.resize(std::min(tried.size(), kTried));

  std::vector<Rounded> found;
  const std::set<Place> places = places_of(state_, cs.cell);
  for (const RoundingModel& model : models) {
    // What rounds its scores does so in out; where out is the wrong one its mistake is not known yet.
    const bool is_of_out = cs.cell.tensor == TensorName::kOut;
    const bool may = is_of_out || std::all_of(places.begin(), places.end(), [&](const Place& place) {
                       return may_round(state_, model, place);
                     });
    if (!may) continue;
    const FunctionOf base = [&](std::int64_t batch, std::int64_t head, std::int64_t document) {
      return state_.base(cs.cell.tensor, batch, head, document);
    };
    const auto without = left_of(state_, cs, base, model, options_.threads);
    if (!without || without->second <= kLeftOfHypothesis * without->first)
      return false;  // no mistake is needed
    for (const auto* one : tried) {
      const FunctionOf function = functions_at(state_, one->second, cs.cell.tensor, places);
      const auto left = left_of(state_, cs, function, model, options_.threads);
      if (left && left->second <= kLeftOfHypothesis * left->first &&
          left->second <= kLeftOfModel * without->second)
        found.push_back({one->second, model, left->second});
    }
  }
  if (found.empty()) return false;
  const double least = std::min_element(found.begin(), found.end(), [](const Rounded& a, const Rounded& b) {
                         return a.left < b.left;
                       })->left;
  std::erase_if(found, [&](const Rounded& one) { return one.left > kAlike * least; });

  std::vector<std::vector<Explained>> explained;
  explained.reserve(found.size());
  for (const Rounded& one : found) explained.push_back(explained_by(state_, one, options_.threads));
  std::size_t best = 0;
  for (std::size_t i = 1; i < found.size(); ++i) {
    const bool is_simpler = explained[i].size() == explained[best].size() &&
                            found[i].candidate.parameters() < found[best].candidate.parameters();
    if (explained[i].size() > explained[best].size() || is_simpler) best = i;
  }
  if (explained[best].empty()) return false;
  std::vector<std::string> equivalent;
  const Cause* cause = found[best].candidate.hypotheses().back().cause;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const Cause* other = found[i].candidate.hypotheses().back().cause;
    const bool is_new = std::find(equivalent.begin(), equivalent.end(), other->id) == equivalent.end();
    if (other != cause && is_new && explained[i].size() == explained[best].size())
      equivalent.emplace_back(other->id);
  }
  Candidate accepted = found[best].candidate;
  accepted.explained = std::move(explained[best]);
  accepted.exact = accepted.explained.size();
  accept(accepted, equivalent);
  // What the rounding leaves wrong is for the rounding models to say, at the end.
  for (const Explained& e : accepted.explained) {
    CellState& explained_cell = state_.cells()[e.cell];
    explained_cell.given_up = explained_cell.rounded = explained_cell.fails;
  }
  return true;
}

}  // namespace sinkscope
