// SPDX-License-Identifier: Apache-2.0
// Trains the runs of a scenario, looks at their gradients beside exact attention's, explains their spikes, and records it
// all.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "src/gate/gate.hpp"
#include "src/lab/lab.hpp"
#include "src/record/run_record.hpp"
#include "src/scenario/scenario.hpp"

namespace sinkscope {

struct StudyOptions {
  std::string output;  // the record; beside it OUTPUT.partial and OUTPUT.state/ while it is not finished
  std::vector<std::string> runs;  // of the scenario; empty: all
  std::int64_t steps = 0;         // of each run at most; 0: all
  bool resume = false;            // go on from OUTPUT.partial and OUTPUT.state/
  bool overwrite = false;
  Gate gate;  // what explain judges a spike's attention by
};

// Told after every step: the run, steps taken, steps wanted.
using StudyProgress =
    std::function<void(const std::string& run, std::int64_t done, std::int64_t of, const StepRow& row)>;
using LabOpener = std::function<std::unique_ptr<lab::Lab>(const lab::LabConfig&)>;

// Every run starts from the end of the scenario's start (or its own first weights) and is recorded step by step. Spikes
// among the first Watching::explained of a run leave captures in STEM_spikes/ beside the record: the batch, and the
// attention of the layer with the largest error. Throws InputError for names that are not known, an output that
// is there already, or a record to go on with that is of another scenario.
RunRecord run_study(const Scenario& scenario, const StudyOptions& options, const RunInfo& info,
                    const LabOpener& open, const StudyProgress& progress = {});

}  // namespace sinkscope
