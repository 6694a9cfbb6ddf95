// SPDX-License-Identifier: Apache-2.0
#include "src/explain/state.hpp"

#include <algorithm>
#include <set>

namespace sinkscope {

State::State(const Case& c, const Gate& gate, std::vector<Cell> cells, const std::vector<bool>& failed,
             std::shared_ptr<Results> results)
    : case_(c),
      documents_(std::max<std::int64_t>(1, static_cast<std::int64_t>(c.problem.shape.docs.size()))),
      results_(std::move(results)) {
  const AttentionShape& s = c.problem.shape;
  std::vector<FunctionPtr> right;
  for (std::int64_t i = 0; i < s.b * s.hq; ++i) {
    const auto function = std::make_shared<const HeadFunction>(right_function(c, i % s.hq));
    for (std::int64_t document = 0; document < documents_; ++document) right.push_back(function);
  }
  base_.fill(right);

  // Heads share keys within a group; a head's dsinks is a sum over the batch.
  std::set<std::pair<std::int64_t, std::int64_t>> concerned;  // batch, kv head
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (!failed[i]) continue;
    for (const auto& [batch, head] : heads_of(cells[i])) concerned.emplace(batch, head / s.group());
  }
  for (std::size_t i = 0; i < cells.size(); ++i) {
    CellState state;
    state.limits = limits_of(gate, c, cells[i].tensor);
    state.cell = std::move(cells[i]);
    const auto heads = heads_of(state.cell);
    state.concerned = std::all_of(heads.begin(), heads.end(), [&](const auto& of) {
      return concerned.contains({of.first, of.second / s.group()});
    });
    state.fails = failed[i];
    cells_.push_back(std::move(state));
  }
  std::vector<HeadTask> tasks;
  for (const auto& [batch, kv] : concerned) {
    for (std::int64_t g = 0; g < s.group(); ++g) {
      const std::int64_t head = kv * s.group() + g;
      tasks.push_back({batch, head, base(TensorName::kOut, batch, head, 0)});
    }
  }
  results_->prepare(tasks, backward());
  for (const TensorName tensor : kTensorNames) refit(tensor);
  for (CellState& cell : cells_) cell.first = cell.base;
}

std::size_t State::index(std::int64_t batch, std::int64_t head, std::int64_t document) const {
  return static_cast<std::size_t>((batch * case_.problem.shape.hq + head) * documents_ + document);
}

FunctionPtr State::base(TensorName tensor, std::int64_t batch, std::int64_t head,
                        std::int64_t document) const {
  return base_[static_cast<std::size_t>(tensor)][index(batch, head, document)];
}

void State::set_base(TensorName tensor, std::int64_t batch, std::int64_t head, std::int64_t document,
                     FunctionPtr f) {
  base_[static_cast<std::size_t>(tensor)][index(batch, head, document)] = std::move(f);
}

void State::refit(TensorName tensor) {
  for (CellState& state : cells_) {
    if (state.cell.tensor != tensor || !state.concerned) continue;
    const Prediction base = state.fact ? *state.fact : predicted_base(state);
    state.wrong_rows = row_fits(state.cell, base, state.limits);
    state.wrong_rows.flip();
    if (std::find(state.wrong_rows.begin(), state.wrong_rows.end(), true) == state.wrong_rows.end())
      state.wrong_rows.clear();
    state.base = fit(state.cell, base, state.limits, std::nullopt, state.wrong_rows);
    state.fails = state.fails && !state.base.fits && !state.is_nearly_explained();
  }
}

Prediction State::predicted(const CellState& state, const FunctionOf& override_of) {
  const Cell& cell = state.cell;
  const FunctionOf function = [&](std::int64_t batch, std::int64_t head, std::int64_t document) {
    FunctionPtr f = override_of ? override_of(batch, head, document) : nullptr;
    return f ? f : base(cell.tensor, batch, head, document);
  };
  const ResultOf result = [&](std::int64_t batch, std::int64_t head,
                              std::int64_t document) -> const HeadResult& {
    return results_->at(batch, head, *function(batch, head, document), needs_backward(cell.tensor));
  };
  return predict(case_, cell, function, result);
}

Fit State::fit_under(const CellState& state, const FunctionOf& override_of) {
  return fit(state.cell, predicted(state, override_of), state.limits, std::nullopt, state.wrong_rows);
}

Prediction State::predicted_base(const CellState& state) {
  return predicted(state, nullptr);
}

std::vector<std::pair<std::int64_t, std::int64_t>> State::heads_of(const Cell& cell) const {
  const AttentionShape& s = case_.problem.shape;
  std::vector<std::pair<std::int64_t, std::int64_t>> heads;
  if (is_of_keys(cell.tensor)) {
    for (std::int64_t g = 0; g < s.group(); ++g) heads.emplace_back(cell.batch, cell.head * s.group() + g);
  } else if (cell.tensor == TensorName::kDsinks) {
    for (std::int64_t batch = 0; batch < s.b; ++batch) heads.emplace_back(batch, cell.head);
  } else {
    heads.emplace_back(cell.batch, cell.head);
  }
  return heads;
}

std::vector<double> State::got(TensorName tensor, std::int64_t batch, std::int64_t head) const {
  std::vector<double> values;
  for (const CellState& state : cells_) {
    const Cell& cell = state.cell;
    if (cell.tensor == tensor && cell.batch == batch && cell.head == head)
      values.insert(values.end(), cell.got.begin(), cell.got.end());
  }
  return values;
}

void State::forget_results() {
  std::vector<std::string> keys = {right_function(case_, 0).key};
  for (const std::vector<FunctionPtr>& functions : base_) {
    for (const FunctionPtr& f : functions) {
      if (std::find(keys.begin(), keys.end(), f->key) == keys.end()) keys.push_back(f->key);
    }
  }
  results_->keep_only(keys);
}

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

}  // namespace sinkscope
