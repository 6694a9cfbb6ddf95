// SPDX-License-Identifier: Apache-2.0
#include "src/explain/explain.hpp"

#include <algorithm>

#include "src/explain/make_finding.hpp"

namespace sinkscope {
namespace {

std::vector<Cell> cells_and_failures(const Case& c, const Gate& gate, const Outputs& outputs,
                                     const std::vector<TensorMetrics>& metrics, std::vector<bool>& failed) {
  std::vector<Cell> cells = cells_of(c, outputs);
  for (const Cell& cell : cells) {
    const auto of = std::find_if(metrics.begin(), metrics.end(),
                                 [&](const TensorMetrics& m) { return m.tensor == cell.tensor; });
    const bool measured = of != metrics.end();
    const std::size_t head = measured ? static_cast<std::size_t>(cell.batch * of->h + cell.head) : 0;
    failed.push_back(measured && failed_heads(gate, c.problem.shape.dtype, *of)[head]);
  }
  return cells;
}

// Where a rounding model leaves next to nothing of the worst head of out, it is asked for all that fails before any
// mistake is: no search is needed then.
std::vector<RoundingFit> rounded_at_once(State& state, const std::vector<std::size_t>& biased, int threads) {
  constexpr double kPlainly = 0.9;
  std::vector<std::size_t> failing = biased;
  std::optional<std::size_t> worst;
  for (std::size_t i = 0; i < state.cells().size(); ++i) {
    const CellState& cs = state.cells()[i];
    if (!cs.fails) continue;
    failing.push_back(i);
    const bool is_worse = !worst || cs.base.z_rms > state.cells()[*worst].base.z_rms;
    if (cs.cell.tensor == TensorName::kOut && is_worse) worst = i;
  }
  if (!worst) return {};
  const std::vector<RoundingFit> probe = explain_by_rounding(state, {*worst}, threads);
  if (probe.empty() || probe.front().share < kPlainly) return {};
  return explain_by_rounding(state, failing, threads);
}

}  // namespace

std::shared_ptr<Results> shared_results(const Case& c, int threads) {
  return std::make_shared<Results>(c, threads);
}

Explanation explain(const Case& c, const Gate& gate, const Outputs& outputs,
                    const std::vector<TensorMetrics>& metrics, bool dsinks_missing,
                    const ExplainOptions& options) {
  std::vector<bool> failed;
  std::vector<Cell> cells = cells_and_failures(c, gate, outputs, metrics, failed);
  const bool anything = std::find(failed.begin(), failed.end(), true) != failed.end();
  if (!anything && !dsinks_missing) return {{nothing_wrong()}};

  const std::shared_ptr<Results> results =
      options.results ? options.results : shared_results(c, options.threads);
  State state(c, gate, std::move(cells), failed, results);
  // A head that the gate fails while each element fits: by its bias, or because it does not repeat.
  std::vector<std::size_t> biased, unclear;
  for (std::size_t i = 0; i < failed.size(); ++i) {
    if (failed[i] && c.problem.shape.docs.empty() && !state.cells()[i].fails) biased.push_back(i);
  }
  const std::vector<RoundingFit> rounded = rounded_at_once(state, biased, options.threads);
  for (const RoundingFit& fit : rounded) {
    for (const std::size_t i : fit.cells) state.cells()[i].given_up = true;  // nothing is searched there
  }
  const std::vector<Accepted> accepted = Engine(state, options).run();
  // A mistake that was found elsewhere in the head may well leave a bias alone here.
  for (const std::size_t i : biased) {
    const auto heads = state.heads_of(state.cells()[i].cell);
    const bool is_known = std::any_of(accepted.begin(), accepted.end(), [&](const Accepted& one) {
      return std::any_of(one.places.begin(), one.places.end(), [&](const Place& place) {
        return std::find(heads.begin(), heads.end(), std::pair(std::get<0>(place), std::get<1>(place))) !=
               heads.end();
      });
    });
    if (!is_known) unclear.push_back(i);
  }
  std::vector<Finding> findings;
  findings.reserve(accepted.size());
  for (const Accepted& one : accepted) findings.push_back(finding_of(state, one));
  std::stable_sort(findings.begin(), findings.end(), [](const Finding& a, const Finding& b) {
    return a.share * static_cast<double>(a.tensors.size()) > b.share * static_cast<double>(b.tensors.size());
  });
  if (dsinks_missing) add_missing_dsinks(state, findings);
  for (std::size_t i = 0; i < failed.size(); ++i) {
    if (state.cells()[i].fails) unclear.push_back(i);
  }
  std::sort(unclear.begin(), unclear.end());
  unclear.erase(std::unique(unclear.begin(), unclear.end()), unclear.end());
  const auto add_rounding = [&](const RoundingFit& fit) {
    findings.push_back(finding_of(state, fit));
    std::erase_if(unclear, [&](std::size_t i) {
      return std::find(fit.cells.begin(), fit.cells.end(), i) != fit.cells.end();
    });
  };
  for (const RoundingFit& fit : rounded) add_rounding(fit);
  if (rounded.empty()) {
    for (const RoundingFit& fit : explain_by_rounding(state, unclear, options.threads)) add_rounding(fit);
  }
  for (const RoundingFit& fit : explain_by_exponentials(state, unclear)) add_rounding(fit);
  if (!unclear.empty()) findings.push_back(unexplained(state, unclear, !findings.empty()));
  results->keep_only({right_function(c, 0).key});  // of other functions the next path has its own
  return {std::move(findings)};
}

}  // namespace sinkscope
