// SPDX-License-Identifier: Apache-2.0
// What an input could not have shown.
#include <algorithm>

#include "src/explain/candidate.hpp"
#include "src/explain/explain.hpp"

namespace sinkscope {
namespace {

// The truth itself as a path's outputs.
Outputs right_outputs(const Case& c, int threads) {
  const AttentionShape& s = c.problem.shape;
  const Truth truth = compute_truth(c, threads);
  Outputs outputs;
  const auto give = [&](TensorName name, std::vector<std::int64_t> shape) {
    const std::vector<double>& values = values_of(truth.value, name);
    if (!values.empty()) outputs[name] = Tensor::rounded(DType::kFp64, std::move(shape), values);
  };
  give(TensorName::kOut, {s.b, s.hq, s.sq, s.d});
  give(TensorName::kLse, {s.b, s.hq, s.sq});
  give(TensorName::kDq, {s.b, s.hq, s.sq, s.d});
  give(TensorName::kDk, {s.b, s.hkv, s.sk, s.d});
  give(TensorName::kDv, {s.b, s.hkv, s.sk, s.d});
  if (c.sinks.given()) give(TensorName::kDsinks, {s.hq});
  return outputs;
}

// Does a hypothesis, made in every head, move any cell over the limits?
bool is_visible(State& state, const Hypothesis& hypothesis) {
  const Candidate candidate({hypothesis}, {""}, false);
  const AttentionShape& s = state.problem().problem.shape;
  std::vector<HeadTask> tasks;
  for (std::int64_t i = 0; i < s.b * s.hq; ++i) {
    if (const FunctionPtr f = candidate.function(state, TensorName::kOut, {i / s.hq, i % s.hq, 0}))
      tasks.push_back({i / s.hq, i % s.hq, f});
  }
  if (tasks.empty()) return false;
  state.results().prepare(tasks, state.backward());
  const bool visible = std::any_of(state.cells().begin(), state.cells().end(), [&](const CellState& cell) {
    return !state
                .fit_under(cell,
                           [&](std::int64_t batch, std::int64_t head, std::int64_t document) {
                             return candidate.function(state, TensorName::kOut, {batch, head, document});
                           })
                .fits;
  });
  state.forget_results();
  return visible;
}

}  // namespace

std::vector<BlindSpot> blind_spots(const Case& c, const Gate& gate, int threads) {
  std::vector<Cell> cells = cells_of(c, right_outputs(c, threads));
  const std::vector<bool> all(cells.size(), true);
  State state(c, gate, std::move(cells), all, shared_results(c, threads));
  std::vector<BlindSpot> spots;
  const HeadFunction right = right_function(c, 0);
  const Probe probe{c, 0, 0, right, [&](TensorName tensor, std::int64_t batch, std::int64_t head) {
                      return state.got(tensor, batch, head);
                    }};
  for (const Cause& cause : all_causes()) {
    if (cause.invisible != nullptr) {
      if (const std::optional<std::string> reason = cause.invisible(c)) {
        spots.push_back({std::string(cause.id), *reason});
        continue;
      }
    }
    if (cause.parameters > 0 && cause.stage == Stage::kForward)
      continue;  // with some parameter it would show
    const std::vector<Hypothesis> variants = cause.hypotheses(cause, probe);
    const bool visible = std::any_of(variants.begin(), variants.end(),
                                     [&](const Hypothesis& variant) { return is_visible(state, variant); });
    if (!visible) spots.push_back({std::string(cause.id), "it would move nothing by more than the limits"});
  }
  return spots;
}

}  // namespace sinkscope
