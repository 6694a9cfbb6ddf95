// SPDX-License-Identifier: Apache-2.0
#include "src/explain/explain.hpp"

#include <algorithm>

#include "src/explain/consequences.hpp"
#include "src/explain/make_finding.hpp"
#include "src/explain/path_stages.hpp"

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

bool contains(const std::vector<std::size_t>& cells, std::size_t cell) {
  return std::find(cells.begin(), cells.end(), cell) != cells.end();
}

// Explains a path of which something fails: the steps in order, and what each leaves to the next.
class Explaining {
 public:
  Explaining(const StagesOf& path, State& state, const std::vector<bool>& failed,
             const ExplainOptions& options)
      : path_(path), state_(state), failed_(failed), options_(options) {}

  Explanation run(bool dsinks_missing) {
    find_biased();
    ask_models_first();
    accepted_ = Engine(state_, options_).run();
    tell_mistakes();
    if (dsinks_missing) add_missing_dsinks(state_, findings_);
    find_unclear();
    ask_models();
    std::vector<HeadStages> stages = ask_stages();
    add(explain_by_exponentials(state_, unclear_));
    if (!unclear_.empty()) findings_.push_back(unexplained(state_, unclear_, !findings_.empty()));
    const Consequences consequences = consequences_of(state_, accepted_, by_rounding_, unclear_);
    Training training = training_of(path_.c, path_.metrics, findings_, consequences, dsinks_missing);
    return {std::move(findings_), std::move(stages), std::move(training)};
  }

 private:
  // Heads that the gate fails while each element fits: by their bias, or because they do not repeat.
  void find_biased() {
    if (!path_.c.problem.shape.docs.empty()) return;
    for (std::size_t i = 0; i < failed_.size(); ++i) {
      if (failed_[i] && !state_.cells()[i].fails) biased_.push_back(i);
    }
  }

  // Where a rounding model leaves next to nothing of the worst head of out, it is asked for all that fails before any
  // mistake is: no search is needed then.
  void ask_models_first() {
    constexpr double kPlainly = 0.9;
    std::vector<std::size_t> failing = biased_;
    std::optional<std::size_t> worst;
    for (std::size_t i = 0; i < state_.cells().size(); ++i) {
      const CellState& cs = state_.cells()[i];
      if (!cs.fails) continue;
      failing.push_back(i);
      const bool is_worse = !worst || cs.base.z_rms > state_.cells()[*worst].base.z_rms;
      if (cs.cell.tensor == TensorName::kOut && is_worse) worst = i;
    }
    if (!worst) return;
    const std::vector<RoundingFit> probe = explain_by_rounding(state_, {*worst}, options_.threads);
    if (probe.empty() || probe.front().share < kPlainly) return;
    at_once_ = explain_by_rounding(state_, failing, options_.threads);
    for (const RoundingFit& fit : at_once_) {
      for (const std::size_t i : fit.cells) state_.cells()[i].given_up = state_.cells()[i].rounded = true;
    }
  }

  void tell_mistakes() {
    for (const Accepted& one : accepted_) findings_.push_back(finding_of(state_, one));
    std::stable_sort(findings_.begin(), findings_.end(), [](const Finding& a, const Finding& b) {
      return a.share * static_cast<double>(a.tensors.size()) >
             b.share * static_cast<double>(b.tensors.size());
    });
  }

  void find_unclear() {
    for (std::size_t i = 0; i < failed_.size(); ++i) {
      // A mistake that was found elsewhere in the head may well leave a bias alone here.
      const bool is_bias = contains(biased_, i) && !has_mistake(state_.cells()[i].cell);
      if (state_.cells()[i].fails || is_bias) unclear_.push_back(i);
    }
  }

  bool has_mistake(const Cell& cell) const {
    const auto heads = state_.heads_of(cell);
    return std::any_of(accepted_.begin(), accepted_.end(), [&](const Accepted& one) {
      return std::any_of(one.places.begin(), one.places.end(), [&](const Place& place) {
        return std::find(heads.begin(), heads.end(), std::pair(std::get<0>(place), std::get<1>(place))) !=
               heads.end();
      });
    });
  }

  // All at once: a mistake in some heads goes on top of the roundings of all, and where it leaves next to nothing that
  // may be a rounding too.
  void ask_models() {
    std::vector<std::size_t> asked = unclear_;
    for (std::size_t i = 0; i < failed_.size(); ++i) {
      if (failed_[i] && !contains(unclear_, i) && state_.cells()[i].is_nearly_explained()) asked.push_back(i);
    }
    const bool is_known = std::all_of(asked.begin(), asked.end(), [&](std::size_t i) {
      return std::any_of(at_once_.begin(), at_once_.end(),
                         [&](const RoundingFit& fit) { return contains(fit.cells, i); });
    });
    const std::vector<RoundingFit> fits =
        is_known ? at_once_ : explain_by_rounding(state_, asked, options_.threads);
    add(fits);
    // What the first of them is known to do, it does everywhere.
    if (!fits.empty()) path_.model = fits.front().model;
  }

  std::vector<HeadStages> ask_stages() {
    FailingPath failing{state_, unclear_, {}};
    for (const Accepted& one : accepted_) add_mistake(failing, one);
    std::vector<HeadStages> explained;
    std::vector<HeadStages> stages = stages_of_failing(path_, failing, explained);
    for (Finding& finding : findings_of_stages(path_.c.problem.shape, explained))
      findings_.push_back(std::move(finding));
    unclear_ = std::move(failing.unclear);
    return stages;
  }

  void add(const std::vector<RoundingFit>& fits) {
    for (const RoundingFit& fit : fits) {
      findings_.push_back(finding_of(state_, fit));
      by_rounding_.push_back(fit);
      std::erase_if(unclear_, [&](std::size_t i) { return contains(fit.cells, i); });
    }
  }

  StagesOf path_;
  State& state_;
  const std::vector<bool>& failed_;
  const ExplainOptions& options_;
  std::vector<std::size_t> biased_, unclear_;  // cells
  std::vector<RoundingFit> at_once_, by_rounding_;
  std::vector<Accepted> accepted_;
  std::vector<Finding> findings_;
};

Explanation nothing_fails(const StagesOf& path) {
  Explanation healthy{{nothing_wrong()}, stages_of_passing(path), {}};
  healthy.training = training_of(path.c, path.metrics, healthy.findings, {}, false);
  for (Finding& finding : findings_of_stages(path.c.problem.shape, healthy.stages))
    healthy.findings.push_back(std::move(finding));
  return healthy;
}

}  // namespace

std::shared_ptr<Results> shared_results(const Case& c, int threads) {
  return std::make_shared<Results>(c, threads);
}

Explanation explain(const Case& c, const Truth& truth, const Gate& gate, const Outputs& outputs,
                    const std::vector<TensorMetrics>& metrics, bool dsinks_missing,
                    const ExplainOptions& options) {
  std::vector<bool> failed;
  std::vector<Cell> cells = cells_and_failures(c, gate, outputs, metrics, failed);
  StagesOf path{c, truth, gate, outputs, metrics};
  path.threads = options.threads;
  const bool anything = std::find(failed.begin(), failed.end(), true) != failed.end();
  if (!anything && !dsinks_missing) return nothing_fails(path);
  const std::shared_ptr<Results> results =
      options.results ? options.results : shared_results(c, options.threads);
  State state(c, gate, std::move(cells), failed, results);
  Explanation explanation = Explaining(path, state, failed, options).run(dsinks_missing);
  results->keep_only({right_function(c, 0).key});  // of other functions the next path has its own
  return explanation;
}

}  // namespace sinkscope
