// SPDX-License-Identifier: Apache-2.0
#include "src/explain/engine.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

#include "src/core/parallel.hpp"
#include "src/explain/rounding_search.hpp"

namespace sinkscope {
namespace {

constexpr int kPairedWith = 3;   // of the causes that alone leave least, so many are tried with a second
constexpr double kHelps = 0.8;   // ... if they leave less than this of the squared error
constexpr int kPairedCells = 2;  // cells for which pairs are tried in vain before they are tried no more
constexpr double kNearly =
    1e-2;  // of the squared error: what leaves less in the worst rows is looked at whole

bool is_forward(TensorName tensor) {
  return tensor == TensorName::kOut || tensor == TensorName::kLse;
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
  const bool is_out_unknown = c.tensor == TensorName::kDq && is_out_given_up(c);
  const Probe probe{state_.problem(), heads.front().first, heads.front().second, base,
                    [&state = state_](TensorName tensor, std::int64_t batch, std::int64_t head) {
                      return state.got(tensor, batch, head);  // hypotheses outlive the engine
                    }};
  std::vector<const Cause*> causes;
  for (const Cause& cause : all_causes()) {
    const bool withheld =
        std::find(options_.withheld.begin(), options_.withheld.end(), cause.id) != options_.withheld.end();
    const bool again =
        std::any_of(before.begin(), before.end(), [&](const Hypothesis& h) { return h.cause == &cause; });
    if (withheld || again || !concerns(cause, c.tensor)) continue;
    // One number says nothing of a gradient whose forward is not understood.
    if (is_unknown && cause.stage != Stage::kKeyHeads) continue;
    if (is_out_unknown && cause.stage == Stage::kForward) continue;
    if (cause.invisible != nullptr && cause.invisible(state_.problem())) continue;
    causes.push_back(&cause);
  }
  // Free parameters are searched for here.
  std::vector<std::vector<Hypothesis>> made(causes.size());
  parallel_for(static_cast<std::int64_t>(causes.size()), options_.threads, [&](std::int64_t i) {
    const Cause& cause = *causes[static_cast<std::size_t>(i)];
    made[static_cast<std::size_t>(i)] = cause.hypotheses(cause, probe);
  });
  std::vector<Candidate> all;
  for (std::vector<Hypothesis>& variants : made) {
    int variant = 0;
    for (Hypothesis& hypothesis : variants) {
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
    return is_own && cs.given_up && !cs.rounded &&
           std::find(heads.begin(), heads.end(), std::pair(cs.cell.batch, cs.cell.head)) != heads.end();
  });
}

// A forward that is not understood is not understood in dq either.
bool Engine::is_out_given_up(const Cell& dq) const {
  return std::any_of(state_.cells().begin(), state_.cells().end(), [&](const CellState& cs) {
    const Cell& out = cs.cell;
    return out.tensor == TensorName::kOut && cs.given_up && !cs.rounded && out.batch == dq.batch &&
           out.head == dq.head && out.document == dq.document;
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
  const auto judge = [&](std::size_t i, const HeadResult& result) {
    fits[i] = fit(c, prediction_of(c, result), cs.limits, rows);
  };
  const auto is_told_by_rows = [&](std::size_t i) {  // its LSE is a whole head's
    return functions[i]->layout != HeadLayout::kTransposed &&
           (functions[i]->layout == HeadLayout::kRight || c.tensor != TensorName::kLse);
  };
  parallel_for(static_cast<std::int64_t>(all.size()), options_.threads, [&](std::int64_t i) {
    const std::optional<HeadFunction>& f = functions[static_cast<std::size_t>(i)];
    if (f && f->layout == HeadLayout::kRight)
      judge(static_cast<std::size_t>(i), evaluate(state_.problem(), c.batch, c.head, *f, backward));
  });
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (functions[i] && functions[i]->layout == HeadLayout::kReread && is_told_by_rows(i))
      judge(i, evaluate_reread_rows(state_.results().reread(), c.batch, c.head, of_head, backward,
                                    options_.threads));
  }
  const double before = fit(c, state_.predicted_base(cs), cs.limits, rows).z2;
  std::vector<Candidate> left;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!functions[i]) continue;
    const bool passes = !is_told_by_rows(i) || fits[i].fits || !(fits[i].z2 > kNearly * before);
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

std::vector<Accepted> Engine::run() {
  while (const std::optional<std::size_t> cell = worst_cell()) {
    CellState& cs = state_.cells()[*cell];
    if (options_.progress)
      options_.progress(fmt::format("{} of {} {}", text(cs.cell.tensor),
                                    is_of_keys(cs.cell.tensor) ? "kv head" : "head", cs.cell.head));
    const double before = cs.base.z2;
    const bool is_of_exp = is_of_exponentials(state_, cs);
    const bool explained = accept_best(*cell, fitting(*cell, singles(*cell))) || accept_fact(*cell) ||
                           accept_rounded(*cell) ||
                           (hopeless_ < kPairedCells && !is_of_exp && accept_best(*cell, pairs(*cell)));
    hopeless_ += explained || is_of_exp ? 0 : 1;
    if (!explained || (cs.fails && !(cs.base.z2 < before))) cs.given_up = true;
    tried_.clear();
    state_.forget_results();
  }
  return std::move(accepted_);
}

}  // namespace sinkscope
