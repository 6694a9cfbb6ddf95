// SPDX-License-Identifier: Apache-2.0
#include "src/study/watch.hpp"

#include <cmath>
#include <map>

#include "src/study/blocks.hpp"

namespace sinkscope {

void Watch::recall(const TrainingRun& run, const RunPlan& plan, std::int64_t offset) {
  std::map<std::int64_t, double> exact;
  for (const ReplayRow& row : run.replays) {
    if (row.path == "exact") exact[row.step] = std::sqrt(sum(row.norm2));
  }
  for (const StepRow& row : run.steps) {
    next(plan.phases.at(static_cast<std::size_t>(row.phase)).settings.kind, row.gradient_norm);
    if (exact.contains(row.step)) add_exact(row.step + offset, exact[row.step]);
  }
}

StepJudgement Watch::next(lab::StepKind kind, double gradient_norm) {
  if (kind_ != kind) {
    kind_ = kind;
    norms_ = SpikeDetector();
    exact_ = SampledMedian();
  }
  return norms_.next(gradient_norm);
}

BeforeSpike Watch::before(std::int64_t step, const StepJudgement& judged) const {
  const double exact = exact_.before(step);
  return {judged.median, std::isnan(exact) ? judged.median : exact, judged.spread};
}

}  // namespace sinkscope
