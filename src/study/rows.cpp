// SPDX-License-Identifier: Apache-2.0
#include "src/study/rows.hpp"

#include <limits>

#include "src/study/blocks.hpp"

namespace sinkscope {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr const char* kExact = "exact";

BlockValues zeros(const RunShape& shape) {
  return to_arrays(std::vector<double>(all_blocks(shape).size()), shape);
}

double& value_of(BlockValues& values, const lab::Block& block, const RunShape& shape) {
  const auto at = [&](std::vector<double>& array, std::int64_t heads) -> double& {
    return array.at(static_cast<std::size_t>(block.layer * heads + block.head));
  };
  switch (block.kind) {
    case lab::BlockKind::kQ:
      return at(values.q, shape.hq);
    case lab::BlockKind::kK:
      return at(values.k, shape.hkv);
    case lab::BlockKind::kV:
      return at(values.v, shape.hkv);
    case lab::BlockKind::kSink:
      return at(values.sink, shape.hq);
    case lab::BlockKind::kOther:
      break;
  }
  return block.layer < 0 ? values.outside : values.other.at(static_cast<std::size_t>(block.layer));
}

BlockValues values_of(const lab::ReplayedPath& path, double lab::ReplayedBlock::*value,
                      const RunShape& shape) {
  BlockValues values = zeros(shape);
  for (const lab::ReplayedBlock& of : path.blocks) value_of(values, of.block, shape) = of.*value;
  return values;
}

}  // namespace

RunShape shape_of(const lab::ModelShape& model) {
  return {model.layers, model.hq, model.hkv};
}

StepRow step_row(const lab::StepResult& result, lab::StepKind kind, const RunShape& shape) {
  StepRow row;
  row.loss = result.loss;
  row.gradient_norm = result.gradient_norm;
  row.norm2 = zeros(shape);
  for (const lab::BlockNorm& of : result.blocks) value_of(row.norm2, of.block, shape) = of.squared;
  for (const lab::HeadFacts& head : result.heads) {
    row.sink_mass.push_back(head.sink_mass);
    row.gain.push_back(head.gain);
    row.entropy.push_back(head.entropy);
    row.max_logit.push_back(head.max_logit);
  }
  const lab::RolloutFacts& of = result.rollouts;
  if (kind == lab::StepKind::kReinforce) {
    row.reward = of.reward;
    row.log_prob_gap = of.gap;
    row.ratio_mean = of.ratio_mean;
    row.ratio_max = of.ratio_max;
    row.effective_samples = of.effective_sample;
    row.clip_fraction = of.clip_fraction;
    row.kl = of.kl;
  } else {
    for (double StepRow::*value :
         {&StepRow::reward, &StepRow::log_prob_gap, &StepRow::ratio_mean, &StepRow::ratio_max,
          &StepRow::effective_samples, &StepRow::clip_fraction, &StepRow::kl})
      row.*value = kNaN;
  }
  return row;
}

std::vector<ReplayRow> replay_rows(const std::vector<lab::ReplayedPath>& paths, std::int64_t step,
                                   const RunShape& shape) {
  std::vector<ReplayRow> rows;
  for (const lab::ReplayedPath& path : paths) {
    if (rows.empty()) {
      rows.push_back(
          {step, kExact, path.exact_loss, values_of(path, &lab::ReplayedBlock::exact, shape), zeros(shape)});
    }
    if (path.path == kExact) continue;
    rows.push_back({step, path.path, path.loss, values_of(path, &lab::ReplayedBlock::squared, shape),
                    values_of(path, &lab::ReplayedBlock::difference, shape)});
  }
  return rows;
}

std::vector<BlockNorms> block_norms(const lab::ReplayedPath& path, const RunShape& shape) {
  const std::vector<double> path2 = to_list(values_of(path, &lab::ReplayedBlock::squared, shape), shape);
  const std::vector<double> exact2 = to_list(values_of(path, &lab::ReplayedBlock::exact, shape), shape);
  const std::vector<double> error2 = to_list(values_of(path, &lab::ReplayedBlock::difference, shape), shape);
  std::vector<BlockNorms> blocks;
  for (const BlockName& name : all_blocks(shape)) {
    const std::size_t i = blocks.size();
    blocks.push_back({name, path2[i], exact2[i], error2[i]});
  }
  return blocks;
}

}  // namespace sinkscope
