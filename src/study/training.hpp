// SPDX-License-Identifier: Apache-2.0
// One run of a study: training, watched.
#pragma once

#include "src/study/checkpoints.hpp"
#include "src/study/study.hpp"
#include "src/study/watch.hpp"

namespace sinkscope {

// What the steps of a run need to know of the rest of the study.
struct RunContext {
  const Scenario& scenario;
  const RunPlan& plan;
  const StudyOptions& options;
  const Checkpoints& checkpoints;
  const StudyProgress& progress;
  RunWriter& writer;
  std::size_t index;  // of the run in the writer
  bool is_last;       // nothing goes on from its end
};

// Takes the run from where `run` ends to its last step; new rows go to `run` and to the writer. `watch` knows the rows
// that are there.
void train(const RunContext& context, lab::Lab& lab, Watch& watch, TrainingRun& run);

}  // namespace sinkscope
