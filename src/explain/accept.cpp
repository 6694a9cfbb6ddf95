// SPDX-License-Identifier: Apache-2.0
// The engine's choice among what fits, and what it then knows.
#include <algorithm>

#include "fmt/format.h"

#include "src/explain/engine.hpp"

namespace sinkscope {
namespace {

constexpr double kPlain = 4;  // times the limit: a single number that is farther off is so for a reason
constexpr double kAlikeResidual = 1.5;  // residuals within this factor of each other say nothing

// Explains more; then contradicts less; then has fewer parts and free parameters; then leaves clearly less.
bool is_better(const Candidate& a, const Candidate& b) {
  if (a.exact != b.exact) return a.exact > b.exact;
  if (a.contradictions != b.contradictions) return a.contradictions < b.contradictions;
  if (a.hypotheses().size() != b.hypotheses().size()) return a.hypotheses().size() < b.hypotheses().size();
  if (a.parameters() != b.parameters()) return a.parameters() < b.parameters();
  return a.residual * kAlikeResidual < b.residual;
}

// Together, since candidates may share a forward.
void prepare_all(State& state, const std::vector<Candidate>& candidates) {
  std::vector<HeadTask> tasks;
  for (const Candidate& candidate : candidates) {
    for (HeadTask& task : candidate.tasks(state)) tasks.push_back(std::move(task));
  }
  state.results().prepare(tasks, state.backward());
}

}  // namespace

Accepted& Engine::record(const Cause& cause, const std::string& note,
                         const std::vector<std::string>& equivalent, const Accepted::Part& part,
                         const std::set<Place>& places) {
  const bool is_known =
      std::any_of(accepted_.begin(), accepted_.end(), [&](const Accepted& a) { return a.cause == &cause; });
  if (!is_known) accepted_.push_back({&cause, note, equivalent, {}, {}, std::nullopt});
  Accepted* const found = &record_of(cause);
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
  const NormsBefore norms = norms_before(best);
  std::set<TensorName> tensors;
  for (const Explained& e : best.explained) {
    CellState& cs = state_.cells()[e.cell];
    const double before = cs.base.z2;
    // Of two mistakes each has the part that it takes away, in order.
    std::vector<double> left = {before};
    for (std::size_t i = 0; i + 1 < best.hypotheses().size(); ++i) {
      const Candidate first = best.only(i);
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
  credit(best, norms);
}

// Is what the candidate explains more than what it denies, or than chance?
bool Engine::is_plausible(const Candidate& candidate) {
  const std::vector<Explained>& explained = candidate.explained;
  const auto cell_of = [&](const Explained& e) -> const CellState& { return state_.cells()[e.cell]; };
  // Heads that read each other's tensors leave few outputs right.
  const bool moves_heads = std::any_of(explained.begin(), explained.end(), [&](const Explained& e) {
    return std::any_of(e.places.begin(), e.places.end(), [&](const Place& place) {
      const auto [batch, head, document] = place;
      const FunctionPtr f = candidate.function(state_, cell_of(e).cell.tensor, place);
      const FunctionPtr before = state_.base(cell_of(e).cell.tensor, batch, head, document);
      return f && (f->layout != before->layout || f->kv_head != before->kv_head);
    });
  });
  if (moves_heads && candidate.contradictions > static_cast<int>(candidate.exact)) return false;
  // One number per head is soon hit: it counts only where the other outputs agree, one of them is far off, and no head is
  // left whose number is not hit.
  const bool is_of_sinks = std::all_of(explained.begin(), explained.end(), [&](const Explained& e) {
    return cell_of(e).cell.tensor == TensorName::kDsinks;
  });
  if (!is_of_sinks) return true;
  const bool is_plain = std::any_of(explained.begin(), explained.end(), [&](const Explained& e) {
    return cell_of(e).base.z_rms > kPlain * cell_of(e).limits.limits.z_max;
  });
  std::size_t failing = 0;
  for (std::size_t i = 0; i < state_.cells().size(); ++i) {
    const CellState& cs = state_.cells()[i];
    const bool counts = cs.cell.tensor == TensorName::kDsinks && cs.concerned && cs.fails;
    failing += counts && !is_unknown_before(i) ? 1 : 0;
  }
  if (candidate.contradictions > 0 || !is_plain || explained.size() < failing) return false;
  // What one head's sink loses another's gets: the numbers must be right when all heads have the mistake.
  std::set<Place> places;
  for (const Explained& e : explained) places.insert(e.places.begin(), e.places.end());
  const FunctionOf together = [&](std::int64_t batch, std::int64_t head, std::int64_t document) {
    const Place place{batch, head, document};
    return places.contains(place) ? candidate.function(state_, TensorName::kDsinks, place) : nullptr;
  };
  return std::all_of(explained.begin(), explained.end(),
                     [&](const Explained& e) { return state_.fit_under(cell_of(e), together).fits; });
}

bool Engine::accept_best(std::size_t cell, std::vector<Candidate> candidates) {
  if (candidates.empty()) return false;
  prepare_all(state_, candidates);
  for (Candidate& candidate : candidates) candidate.score(state_);
  std::erase_if(candidates, [&](const Candidate& candidate) { return !is_plausible(candidate); });
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
  // A buffer may hold the numbers of another one. Where both should be the same, as of batch entries that are alike, that
  // says nothing.
  const auto holder = [&]() -> std::string {
    if (cs.cell.got.size() < 2) return "";
    for (const CellState& other : state_.cells()) {
      if (&other == &cs || other.cell.got != cs.cell.got) continue;
      if (state_.predicted_base(other).value == base.value) continue;
      return fmt::format(
          "{} of head {}{}", text(other.cell.tensor), other.cell.head,
          other.cell.batch == cs.cell.batch ? "" : fmt::format(" of batch entry {}", other.cell.batch));
    }
    return "";
  };
  std::optional<Fact> fact = find_fact(cs.cell, base, cs.limits, holder);
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
  const double norm2 = gradient_norm2();
  cs.fact = std::move(fact->expected);
  state_.refit(cs.cell.tensor);
  record_of(cause).norm2_change += gradient_norm2() - norm2;
  if (cs.fails) cs.fact.reset(), cs.given_up = true;
  return true;
}

}  // namespace sinkscope
