// SPDX-License-Identifier: Apache-2.0
// What a run has been like so far, which a spike stands out from.
#pragma once

#include <cstdint>
#include <optional>

#include "src/record/run_record.hpp"
#include "src/scenario/scenario.hpp"
#include "src/spike/detector.hpp"
#include "src/spike/explained.hpp"

namespace sinkscope {

// Follows one run. Supervised steps say nothing of what reinforcement's norms are usually like, nor the other way round:
// each change of kind begins anew.
class Watch {
 public:
  // Takes in the rows that a run has already; `offset` is added to their steps.
  void recall(const TrainingRun& run, const RunPlan& plan, std::int64_t offset = 0);
  StepJudgement next(lab::StepKind kind, double gradient_norm);
  void add_exact(std::int64_t step, double norm) { exact_.add(step, norm); }
  // For a step that next() has just judged. Without an exact norm in the window, the path's median stands for it.
  BeforeSpike before(std::int64_t step, const StepJudgement& judged) const;

 private:
  std::optional<lab::StepKind> kind_;
  SpikeDetector norms_;
  SampledMedian exact_;
};

}  // namespace sinkscope
