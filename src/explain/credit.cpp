// SPDX-License-Identifier: Apache-2.0
// How much longer or shorter each cause made the gradients: what the engine keeps while it accepts them.
#include <algorithm>

#include "src/explain/engine.hpp"
#include "src/explain/training.hpp"

namespace sinkscope {

// What was recorded of a cause.
Accepted& Engine::record_of(const Cause& cause) {
  return *std::find_if(accepted_.begin(), accepted_.end(),
                       [&](const Accepted& a) { return a.cause == &cause; });
}

// The squared norm of dq, dk and dv as far as they are known.
double Engine::gradient_norm2() const {
  double sum = 0;
  for (const CellState& cs : state_.cells()) {
    if (cs.concerned && is_layer_gradient(cs.cell.tensor)) sum += cs.base.norm2;
  }
  return sum;
}

// The same with other functions in the places of some cells, in their tensors.
double Engine::gradient_norm2_under(const Changes& changes, const std::vector<Explained>& where) const {
  std::map<TensorName, std::set<Place>> places;
  for (const Explained& e : where)
    places[state_.cells()[e.cell].cell.tensor].insert(e.places.begin(), e.places.end());
  double sum = 0;
  for (const CellState& cs : state_.cells()) {
    const TensorName tensor = cs.cell.tensor;
    if (!cs.concerned || !is_layer_gradient(tensor)) continue;
    const auto changed = [&](std::int64_t batch, std::int64_t head, std::int64_t document) {
      const Place place{batch, head, document};
      return places[tensor].contains(place) ? changes(tensor, place) : nullptr;
    };
    sum += cs.fact ? cs.base.norm2 : state_.fit_under(cs, changed).norm2;
  }
  return sum;
}

// Mistakes in the forward of these cells changed the gradients by so much, several in equal parts. False where there is
// none.
bool Engine::credit_forward(const std::vector<Explained>& where, double change) {
  std::vector<Accepted*> causes;
  for (Accepted& a : accepted_) {
    const bool is_there = std::any_of(where.begin(), where.end(), [&](const Explained& e) {
      return std::any_of(e.places.begin(), e.places.end(),
                         [&](const Place& place) { return a.places.contains(place); });
    });
    if (a.cause->stage == Stage::kForward && a.candidate && is_there) causes.push_back(&a);
  }
  for (Accepted* cause : causes) cause->norm2_change += change / static_cast<double>(causes.size());
  return !causes.empty();
}

// Before a candidate is accepted. Where it is made on top of the forward's mistakes, these get their part now.
Engine::NormsBefore Engine::norms_before(const Candidate& best) {
  NormsBefore before{gradient_norm2(), {}};
  if (best.on_forward()) {
    const Changes forward = [&](TensorName, const Place& place) {
      return state_.base(TensorName::kOut, std::get<0>(place), std::get<1>(place), std::get<2>(place));
    };
    const double on_forward = gradient_norm2_under(forward, best.explained);
    if (credit_forward(best.explained, on_forward - before.known)) before.known = on_forward;
  }
  for (std::size_t i = 0; i < best.hypotheses().size() && best.hypotheses().size() == 2; ++i) {
    const Candidate one = best.only(i);
    const Changes changes = [&](TensorName tensor, const Place& place) {
      return one.function(state_, tensor, place);
    };
    before.alone.push_back(gradient_norm2_under(changes, best.explained));
  }
  return before;
}

// After it. Of two mistakes at once each has the mean of what it changes alone and what it changes on top of the other.
void Engine::credit(const Candidate& best, const NormsBefore& before) {
  const double after = gradient_norm2();
  const auto& [known, alone] = before;
  for (std::size_t i = 0; i < best.hypotheses().size(); ++i) {
    const double change = alone.empty() ? after - known : (alone[i] - known + after - alone[1 - i]) / 2;
    record_of(*best.hypotheses()[i].cause).norm2_change += change;
  }
}

}  // namespace sinkscope
