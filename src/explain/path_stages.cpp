// SPDX-License-Identifier: Apache-2.0
#include "src/explain/path_stages.hpp"

#include <algorithm>
#include <cmath>

#include "src/explain/rounding_search.hpp"

namespace sinkscope {
namespace {

std::vector<TensorHead> all_heads(const std::vector<TensorMetrics>& metrics) {
  std::vector<TensorHead> heads;
  for (const TensorMetrics& of : metrics) {
    for (std::int64_t batch = 0; batch < of.b; ++batch) {
      for (std::int64_t head = 0; head < of.h; ++head) heads.push_back({of.tensor, {batch, head}});
    }
  }
  return heads;
}

TensorHead head_of(const Cell& cell) {
  return {cell.tensor, {cell.batch, cell.head}};
}

// No rounding to 16 bits or tf32 makes an error of more than this.
bool may_be_rounding(const FailingPath& failing) {
  const bool in_fp32 = failing.state.problem().problem.shape.dtype == DType::kFp32;
  return std::all_of(failing.unclear.begin(), failing.unclear.end(), [&](std::size_t i) {
    const CellState& cs = failing.state.cells()[i];
    return cs.base.z_rms <= (in_fp32 || cs.cell.tensor == TensorName::kLse ? 1e6 : 300);
  });
}

bool is_explained(const CellState& cs, const HeadStages& head) {
  constexpr double kNextToNothing = 0.1, kLittle = 0.5;
  if (head.left <= kNextToNothing) return true;
  const double limit = z_rms_limit(cs.limits.limits, cs.cell.rows.size());
  return cs.cell.tensor != TensorName::kDsinks && head.left <= kLittle &&
         head.z_rms * std::sqrt(head.left) <= limit;
}

bool reaches(Stage stage, TensorName tensor) {
  switch (stage) {
    case Stage::kForward:
      return true;
    case Stage::kBackward:
      return tensor != TensorName::kOut && tensor != TensorName::kLse;
    case Stage::kKeyHeads:
      return is_of_keys(tensor);
    case Stage::kSinkGradient:
      break;
  }
  return tensor == TensorName::kDsinks;
}

}  // namespace

void add_mistake(FailingPath& failing, const Accepted& accepted) {
  for (const Accepted::Part& part : accepted.parts)
    failing.mistaken.insert(head_of(failing.state.cells()[part.cell].cell));
  if (!accepted.candidate) return;  // a fact is about what it was seen in
  for (const CellState& cs : failing.state.cells()) {
    if (!reaches(accepted.cause->stage, cs.cell.tensor)) continue;
    const auto heads = failing.state.heads_of(cs.cell);
    const bool is_reached = std::any_of(heads.begin(), heads.end(), [&](const auto& head) {
      return accepted.places.contains({head.first, head.second, cs.cell.document});
    });
    if (is_reached) failing.mistaken.insert(head_of(cs.cell));
  }
}

std::vector<HeadStages> stages_of_passing(StagesOf path) {
  path.heads = all_heads(path.metrics);
  return rounding_stages(path);
}

std::vector<HeadStages> stages_of_failing(StagesOf path, FailingPath& failing,
                                          std::vector<HeadStages>& explained) {
  const State& state = failing.state;
  const bool tries_unclear = !path.model && failing.mistaken.empty() && may_be_rounding(failing);
  std::set<TensorHead> unclear, left_out = failing.mistaken;
  for (const std::size_t i : failing.unclear) {
    unclear.insert(head_of(state.cells()[i].cell));
    if (!tries_unclear) left_out.insert(head_of(state.cells()[i].cell));
  }
  path.heads = all_heads(path.metrics);
  std::erase_if(path.heads, [&](const TensorHead& head) { return left_out.contains(head); });
  if (path.heads.empty()) return {};
  for (const TensorHead& head : failing.mistaken) {
    if (head.first == TensorName::kOut) path.own_out = false;
    if (head.first == TensorName::kLse) path.own_lse = false;
  }
  for (const std::size_t i : failing.unclear) {
    const CellState& cs = failing.state.cells()[i];
    if (cs.cell.tensor == TensorName::kOut) path.own_out = false;
    if (cs.cell.tensor == TensorName::kLse && !is_of_exponentials(failing.state, cs)) path.own_lse = false;
  }
  std::vector<HeadStages> stages = rounding_stages(path);

  // A tensor is explained as a whole or not at all.
  std::set<TensorName> unexplained;
  for (const std::size_t i : failing.unclear) {
    const CellState& cs = state.cells()[i];
    const auto of = std::find_if(stages.begin(), stages.end(), [&](const HeadStages& head) {
      return TensorHead(head.tensor, {head.batch, head.head}) == head_of(cs.cell);
    });
    if (of == stages.end() || !is_explained(cs, *of)) unexplained.insert(cs.cell.tensor);
  }
  std::erase_if(failing.unclear,
                [&](std::size_t i) { return !unexplained.contains(state.cells()[i].cell.tensor); });
  std::set<TensorHead> still_unclear;
  for (const std::size_t i : failing.unclear) still_unclear.insert(head_of(state.cells()[i].cell));
  std::erase_if(stages, [&](const HeadStages& head) {
    return still_unclear.contains({head.tensor, {head.batch, head.head}});
  });
  for (const HeadStages& head : stages) {
    if (unclear.contains({head.tensor, {head.batch, head.head}})) explained.push_back(head);
  }
  return stages;
}

}  // namespace sinkscope
