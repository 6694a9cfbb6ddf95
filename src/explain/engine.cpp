// SPDX-License-Identifier: Apache-2.0
#include "src/explain/engine.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

#include "src/core/parallel.hpp"

namespace sinkscope {
namespace {

constexpr int kPairedWith = 3;   // of the causes that alone leave least, so many are tried with a second
constexpr double kHelps = 0.8;   // ... if they leave less than this of the squared error
constexpr int kPairedCells = 2;  // cells for which pairs are tried in vain before they are tried no more
constexpr double kNearly =
    1e-2;                     // of the squared error: what leaves less in the worst rows is looked at whole
constexpr double kPlain = 4;  // times the limit: a single number that is farther off is so for a reason
constexpr double kAlikeResidual = 1.5;  // residuals within this factor of each other say nothing

bool is_forward(TensorName tensor) {
  return tensor == TensorName::kOut || tensor == TensorName::kLse;
}

// The longest run of rows that are wrong, or its middle.
std::optional<Range> worst_rows(const CellState& cs) {
  constexpr std::int64_t kMost = 32;
  Range best, run;
  for (std::int64_t row = 0; row < static_cast<std::int64_t>(cs.wrong_rows.size()); ++row) {
    if (!cs.wrong_rows[static_cast<std::size_t>(row)]) continue;
    run = run.end == row ? Range{run.first, row + 1} : Range{row, row + 1};
    if (run.size() > best.size()) best = run;
  }
  if (best.size() == 0) return std::nullopt;
  const std::int64_t first = best.first + std::max<std::int64_t>(0, best.size() - kMost) / 2;
  return Range{first, std::min(best.end, first + kMost)};
}

// Of one of the tensors that belong to a head alone.
Prediction prediction_of(const Cell& cell, const HeadResult& r) {
  const bool is_lse = cell.tensor == TensorName::kLse, is_dq = cell.tensor == TensorName::kDq;
  const std::vector<double>& value = is_lse ? r.lse : is_dq ? r.dq : r.out;
  const std::vector<double>& sigma = is_lse ? r.sigma_lse : is_dq ? r.sigma_dq : r.sigma_out;
  const std::int64_t first = cell.rows.first * cell.columns, end = cell.rows.end * cell.columns;
  return {{value.begin() + first, value.begin() + end}, {sigma.begin() + first, sigma.begin() + end}};
}

// Could the cause change this tensor at all?
bool concerns(const Cause& cause, TensorName tensor) {
  switch (cause.stage) {
    case Stage::kForward:
      return true;
    case Stage::kBackward:
      return tensor != TensorName::kOut && (tensor != TensorName::kLse || cause.id.starts_with("lse_"));
    case Stage::kKeyHeads:
      return is_of_keys(tensor);
    case Stage::kSinkGradient:
      return tensor == TensorName::kDsinks;
  }
  return true;
}

// Explains more; then contradicts less; then has fewer parts and free parameters; then leaves clearly less.
bool is_better(const Candidate& a, const Candidate& b) {
  if (a.exact != b.exact) return a.exact > b.exact;
  if (a.contradictions != b.contradictions) return a.contradictions < b.contradictions;
  if (a.hypotheses().size() != b.hypotheses().size()) return a.hypotheses().size() < b.hypotheses().size();
  if (a.parameters() != b.parameters()) return a.parameters() < b.parameters();
  return a.residual * kAlikeResidual < b.residual;
}

}  // namespace

std::optional<std::size_t> Engine::worst_cell() const {
  std::optional<std::size_t> worst;
  const auto rank = [&](std::size_t i) {
    const CellState& cell = state_.cells()[i];
    return std::pair(-static_cast<int>(cell.cell.tensor), cell.base.z_rms);
  };
  for (std::size_t i = 0; i < state_.cells().size(); ++i) {
    const CellState& cell = state_.cells()[i];
    if (!cell.concerned || !cell.fails || cell.given_up) continue;
    if (!worst || rank(i) > rank(*worst)) worst = i;
  }
  return worst;
}

std::vector<Candidate> Engine::candidates_for(std::size_t cell, const std::vector<Hypothesis>& before,
                                              const std::vector<std::string>& suffixes,
                                              const HeadFunction& base, bool on_forward) {
  const Cell& c = state_.cells()[cell].cell;
  const auto heads = state_.heads_of(c);
  const bool is_unknown = is_unknown_before(cell);
  const Probe probe{state_.problem(), heads.front().first, heads.front().second, base,
                    [&state = state_](TensorName tensor, std::int64_t batch, std::int64_t head) {
                      return state.got(tensor, batch, head);  // hypotheses outlive the engine
                    }};
  std::vector<Candidate> all;
  for (const Cause& cause : all_causes()) {
    const bool withheld =
        std::find(options_.withheld.begin(), options_.withheld.end(), cause.id) != options_.withheld.end();
    const bool again =
        std::any_of(before.begin(), before.end(), [&](const Hypothesis& h) { return h.cause == &cause; });
    if (withheld || again || !concerns(cause, c.tensor)) continue;
    if (is_unknown && cause.stage != Stage::kKeyHeads && cause.stage != Stage::kSinkGradient) continue;
    if (cause.invisible != nullptr && cause.invisible(state_.problem())) continue;
    int variant = 0;
    for (Hypothesis& hypothesis : cause.hypotheses(cause, probe)) {
      std::vector<Hypothesis> together = before;
      std::vector<std::string> keys = suffixes;
      together.push_back(std::move(hypothesis));
      keys.push_back(variant == 0 ? "" : fmt::format("#{}", variant));
      all.emplace_back(std::move(together), std::move(keys), on_forward);
      ++variant;
    }
  }
  return all;
}

// Is a head that a sum over heads depends on not understood itself? Then nothing can be said of the sum.
bool Engine::is_unknown_before(std::size_t cell) const {
  const Cell& sum = state_.cells()[cell].cell;
  if (!is_of_keys(sum.tensor) && sum.tensor != TensorName::kDsinks) return false;
  const auto heads = state_.heads_of(sum);
  return std::any_of(state_.cells().begin(), state_.cells().end(), [&](const CellState& cs) {
    const bool is_own = !is_of_keys(cs.cell.tensor) && cs.cell.tensor != TensorName::kDsinks;
    return is_own && cs.given_up &&
           std::find(heads.begin(), heads.end(), std::pair(cs.cell.batch, cs.cell.head)) != heads.end();
  });
}

std::vector<Candidate> Engine::singles(std::size_t cell) {
  const Cell& c = state_.cells()[cell].cell;
  const auto [batch, head] = state_.heads_of(c).front();
  const FunctionPtr own = state_.base(c.tensor, batch, head, c.document);
  const FunctionPtr forward = state_.base(TensorName::kOut, batch, head, c.document);
  std::vector<Candidate> all = candidates_for(cell, {}, {}, *own, false);
  if (own->key != forward->key) {
    for (Candidate& candidate : candidates_for(cell, {}, {}, *forward, true))
      all.push_back(std::move(candidate));
  }
  return all;
}

// Those that make the worst rows of the cell right, or nearly: a cheap test before a whole head is computed. The others
// are remembered with what they leave.
std::vector<Candidate> Engine::screened(std::size_t cell, std::vector<Candidate> all) {
  const CellState& cs = state_.cells()[cell];
  const Cell& c = cs.cell;
  const std::optional<Range> rows = worst_rows(cs);
  const FunctionPtr base = state_.base(c.tensor, c.batch, c.head, c.document);
  if (!rows || base->elsewhere || base->layout != HeadLayout::kRight) return all;
  const Range of_head{c.rows.first + rows->first, c.rows.first + rows->end};
  std::vector<std::optional<HeadFunction>> functions;
  std::vector<Fit> fits(all.size());
  for (const Candidate& candidate : all) {
    const FunctionPtr f = candidate.function(state_, c.tensor, {c.batch, c.head, c.document});
    functions.push_back(f ? std::optional(only_rows(*f, of_head)) : std::nullopt);
  }
  const bool backward = !is_forward(c.tensor);
  parallel_for(static_cast<std::int64_t>(all.size()), options_.threads, [&](std::int64_t i) {
    const std::optional<HeadFunction>& f = functions[static_cast<std::size_t>(i)];
    if (!f || f->layout != HeadLayout::kRight) return;
    const HeadResult result = evaluate(state_.problem(), c.batch, c.head, *f, backward);
    fits[static_cast<std::size_t>(i)] = fit(c, prediction_of(c, result), cs.limits, rows);
  });
  const double before = fit(c, state_.predicted_base(cs), cs.limits, rows).z2;
  std::vector<Candidate> left;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!functions[i]) continue;
    const bool passes =
        functions[i]->layout != HeadLayout::kRight || fits[i].fits || !(fits[i].z2 > kNearly * before);
    if (passes) {
      left.push_back(std::move(all[i]));
    } else if (std::isfinite(before)) {
      tried_[cell].emplace_back(fits[i].z2 / before, std::move(all[i]));
    }
  }
  return left;
}

// Those that make the cell right; all are remembered with what they leave.
std::vector<Candidate> Engine::fitting(std::size_t cell, std::vector<Candidate> all) {
  const Cell c = state_.cells()[cell].cell;
  const bool backward = !is_forward(c.tensor);
  tried_[cell].clear();
  if (!is_of_keys(c.tensor) && c.tensor != TensorName::kDsinks) all = screened(cell, std::move(all));
  std::vector<HeadTask> tasks;
  for (const Candidate& candidate : all) {
    for (const auto& [batch, head] : state_.heads_of(c)) {
      if (const FunctionPtr f = candidate.function(state_, c.tensor, {batch, head, c.document}))
        tasks.push_back({batch, head, f});
    }
  }
  state_.results().prepare(tasks, backward);
  std::vector<Candidate> exact;
  auto& tried = tried_[cell];
  for (Candidate& candidate : all) {
    if (candidate.explain_cell(state_, cell)) {
      exact.push_back(std::move(candidate));
      continue;
    }
    const auto changed = [&](std::int64_t batch, std::int64_t head, std::int64_t document) {
      return candidate.function(state_, c.tensor, {batch, head, document});
    };
    const double left = state_.fit_under(state_.cells()[cell], changed).z2;
    tried.emplace_back(left / state_.cells()[cell].base.z2, std::move(candidate));
  }
  return exact;
}

// Two mistakes at once: the ones that help most, each with every other on top.
std::vector<Candidate> Engine::pairs(std::size_t cell) {
  const CellState& cs = state_.cells()[cell];
  const auto [batch, head] = state_.heads_of(cs.cell).front();
  std::vector<std::pair<double, Candidate>> tried = std::move(tried_[cell]);
  std::stable_sort(tried.begin(), tried.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Candidate> all;
  int used = 0;
  for (const auto& [left, first] : tried) {
    if (used == kPairedWith || !(left < kHelps)) break;
    ++used;
    const FunctionPtr f = first.function(state_, cs.cell.tensor, {batch, head, cs.cell.document});
    if (!f || f->layout != HeadLayout::kRight) continue;
    for (Candidate& candidate :
         candidates_for(cell, first.hypotheses(), first.suffixes(), *f, first.on_forward()))
      all.push_back(std::move(candidate));
  }
  return all.empty() ? all : fitting(cell, std::move(all));
}

Accepted& Engine::record(const Cause& cause, const std::string& note,
                         const std::vector<std::string>& equivalent, const Accepted::Part& part,
                         const std::set<Place>& places) {
  auto found =
      std::find_if(accepted_.begin(), accepted_.end(), [&](const Accepted& a) { return a.cause == &cause; });
  if (found == accepted_.end()) {
    accepted_.push_back({&cause, note, equivalent, {}, {}, std::nullopt});
    found = accepted_.end() - 1;
  }
  constexpr std::ptrdiff_t kMostNotes = 4;
  const std::ptrdiff_t notes = std::count(found->note.begin(), found->note.end(), ';') + 1;
  if (!note.empty() && found->note.find(note) == std::string::npos && notes <= kMostNotes) {
    found->note += found->note.empty() ? "" : "; ";
    found->note += notes < kMostNotes ? note : "and so on";
  }
  // Equivalent is what every cell allows.
  std::erase_if(found->equivalent, [&](const std::string& id) {
    return std::find(equivalent.begin(), equivalent.end(), id) == equivalent.end();
  });
  found->parts.push_back(part);
  found->places.insert(places.begin(), places.end());
  return *found;
}

void Engine::accept(const Candidate& best, const std::vector<std::string>& equivalent) {
  std::set<TensorName> tensors;
  for (const Explained& e : best.explained) {
    CellState& cs = state_.cells()[e.cell];
    const double before = cs.base.z2;
    // Of two mistakes each has the part that it takes away, in order.
    std::vector<double> left = {before};
    for (std::size_t i = 0; i + 1 < best.hypotheses().size(); ++i) {
      const Candidate first({best.hypotheses()[i]}, {best.suffixes()[i]}, best.on_forward());
      left.push_back(state_
                         .fit_under(cs,
                                    [&](std::int64_t batch, std::int64_t head, std::int64_t document) {
                                      const Place place{batch, head, document};
                                      return e.places.contains(place)
                                                 ? first.function(state_, cs.cell.tensor, place)
                                                 : nullptr;
                                    })
                         .z2);
    }
    left.push_back(e.fit.z2);
    for (std::size_t i = 0; i < best.hypotheses().size(); ++i) {
      std::string note;
      for (const Place& place : e.places) {
        const FunctionPtr f = best.function(state_, cs.cell.tensor, place);
        if (i + 1 == best.hypotheses().size() && f && note.find(f->note) == std::string::npos)
          note += (note.empty() ? "" : "; ") + f->note;
      }
      Accepted& accepted = record(*best.hypotheses()[i].cause, note, equivalent,
                                  {e.cell, left[i], left[i + 1], e.fit.z_rms, e.rows, e.fit.fits}, e.places);
      accepted.candidate = Candidate({best.hypotheses()[i]}, {best.suffixes()[i]}, best.on_forward());
    }
    tensors.insert(cs.cell.tensor);
  }
  // Functions are made from the base: all before any is set.
  std::vector<std::tuple<TensorName, Place, FunctionPtr>> known;
  for (const Explained& e : best.explained) {
    const TensorName tensor = state_.cells()[e.cell].cell.tensor;
    for (const Place& place : e.places)
      known.emplace_back(tensor, place, best.function(state_, tensor, place));
  }
  for (const auto& [tensor, place, f] : known) {
    const auto [batch, head, document] = place;
    if (f) state_.set_base(tensor, batch, head, document, f);
  }
  for (const TensorName tensor : tensors) state_.refit(tensor);
}

bool Engine::accept_best(std::size_t cell, std::vector<Candidate> candidates) {
  if (candidates.empty()) return false;
  for (Candidate& candidate : candidates) candidate.score(state_);
  // One number per head is soon hit: it counts only where the other outputs agree, and one of them is far off.
  std::erase_if(candidates, [&](const Candidate& candidate) {
    const bool is_of_sinks = std::all_of(
        candidate.explained.begin(), candidate.explained.end(),
        [&](const Explained& e) { return state_.cells()[e.cell].cell.tensor == TensorName::kDsinks; });
    const bool is_plain =
        std::any_of(candidate.explained.begin(), candidate.explained.end(), [&](const Explained& e) {
          return state_.cells()[e.cell].base.z_rms > kPlain * state_.cells()[e.cell].limits.limits.z_max;
        });
    return is_of_sinks && (candidate.contradictions > 0 || !is_plain);
  });
  if (candidates.empty()) return false;
  std::size_t best = 0;
  for (std::size_t i = 1; i < candidates.size(); ++i) {
    if (is_better(candidates[i], candidates[best])) best = i;
  }
  if (candidates[best].explained.empty()) return false;
  // A plain fact about the numbers themselves is better than a function that the rest of the outputs denies.
  if (candidates[best].contradictions > 0 && accept_fact(cell)) return true;
  const auto is_named = [&](const Cause* cause) {
    const auto& named = candidates[best].hypotheses();
    return std::any_of(named.begin(), named.end(), [&](const Hypothesis& h) { return h.cause == cause; });
  };
  std::vector<std::string> equivalent;
  for (const Candidate& other : candidates) {
    if (other.hypotheses().size() != candidates[best].hypotheses().size() ||
        !covers(other, candidates[best]) || other.contradictions > candidates[best].contradictions) {
      continue;
    }
    const Cause* cause = other.hypotheses().back().cause;
    if (!is_named(cause) && std::find(equivalent.begin(), equivalent.end(), cause->id) == equivalent.end())
      equivalent.emplace_back(cause->id);
  }
  accept(candidates[best], equivalent);
  return true;
}

bool Engine::accept_fact(std::size_t cell) {
  CellState& cs = state_.cells()[cell];
  if (cs.fact) return false;
  const Prediction base = state_.predicted_base(cs);
  // A buffer may hold the numbers of another one.
  std::vector<OtherCell> others;
  for (std::size_t i = 0; i < state_.cells().size(); ++i) {
    const Cell& other = state_.cells()[i].cell;
    if (i == cell || other.got.size() != cs.cell.got.size() || cs.cell.got.size() < 2) continue;
    others.push_back(
        {fmt::format("{} of head {}{}", text(other.tensor), other.head,
                     other.batch == cs.cell.batch ? "" : fmt::format(" of batch entry {}", other.batch)),
         &other});
  }
  std::optional<Fact> fact = find_fact(cs.cell, base, cs.limits, others);
  if (!fact) return false;
  const Cause& cause = find_cause(fact->cause);
  if (std::find(options_.withheld.begin(), options_.withheld.end(), cause.id) != options_.withheld.end())
    return false;
  const Fit after = fit(cs.cell, fact->expected, cs.limits);
  std::optional<Range> rows;
  if (fact->rows.size() < cs.cell.rows.size())
    rows = Range{cs.cell.rows.first + fact->rows.first, cs.cell.rows.first + fact->rows.end};
  std::set<Place> places;
  for (const auto& [batch, head] : state_.heads_of(cs.cell)) places.emplace(batch, head, cs.cell.document);
  std::vector<std::string> equivalent;
  if (cause.id == "head_zeroed") equivalent = {"rows_missing"};
  record(cause, fact->note, equivalent, {cell, cs.base.z2, after.z2, after.z_rms, rows, after.fits}, places);
  cs.fact = std::move(fact->expected);
  state_.refit(cs.cell.tensor);
  if (cs.fails) cs.fact.reset(), cs.given_up = true;
  return true;
}

std::vector<Accepted> Engine::run() {
  while (const std::optional<std::size_t> cell = worst_cell()) {
    CellState& cs = state_.cells()[*cell];
    const double before = cs.base.z2;
    const bool explained = accept_best(*cell, fitting(*cell, singles(*cell))) || accept_fact(*cell) ||
                           (hopeless_ < kPairedCells && accept_best(*cell, pairs(*cell)));
    hopeless_ += explained ? 0 : 1;
    if (!explained || (cs.fails && !(cs.base.z2 < before))) cs.given_up = true;
    tried_.clear();
    state_.forget_results();
  }
  return std::move(accepted_);
}

}  // namespace sinkscope
