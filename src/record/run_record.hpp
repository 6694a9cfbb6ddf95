// SPDX-License-Identifier: Apache-2.0
// The record of training runs: every step as it happens, counterfactual gradients, spikes. Layout in
// src/record/README.md.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "src/record/run_info.hpp"

namespace sinkscope {

inline constexpr int kRunRecordMajor = 1;
inline constexpr int kRunRecordMinor = 1;

// One number for each part of a model's parameters.
struct BlockValues {
  std::vector<double> q, sink;  // [layer, head]
  std::vector<double> k, v;     // [layer, kv_head]
  std::vector<double> other;    // [layer]
  double outside = 0;           // embedding, head and final norm
};

// NaN where a step has no such number: there is no reward in pre-training.
struct StepRow {
  std::int64_t step = 0;   // from 0, over all phases of the run
  std::int64_t phase = 0;  // of the run's phases
  double seconds = 0;
  double loss = 0, reward = 0;
  double gradient_norm = 0;  // global, before clipping
  double z = 0;              // StepJudgement::z
  double log_prob_gap = 0, ratio_mean = 0, ratio_max = 0, effective_samples = 0, clip_fraction = 0, kl = 0;
  BlockValues norm2;                                        // |g|^2
  std::vector<double> sink_mass, gain, entropy, max_logit;  // [layer, head]
};

// The gradient of one step through one path, beside exact attention's.
struct ReplayRow {
  std::int64_t step = 0;
  std::string path;
  double loss = 0;
  BlockValues norm2, error2;  // |g|^2, |g - g_e|^2
};

struct SpikeRow {
  std::int64_t step = 0;
  double z = 0, gradient_norm = 0, median = 0;
  double exact_norm = 0, exact_median = 0, spread = 0;
  double fraction = 0;     // F
  double error_share = 0;  // |g - g_e|^2 / |g|^2
  std::string verdict;     // text(SpikeVerdict)
  std::string capture;     // the file with the batch
  BlockValues share;       // of F
};

struct CauseRow {
  std::int64_t step = 0;
  std::string cause;
  double share = 0;  // of F: all of a spike sum to it
};

struct RunShape {
  std::int64_t layers = 0, hq = 0, hkv = 0;
};

// One run of a scenario.
struct TrainingRun {
  std::string name, training_path, rollout_path;  // paths of the last phase
  std::vector<std::string> phase_paths;           // the training path of every phase; none: all as the last
  RunShape shape;
  std::vector<StepRow> steps;
  std::vector<ReplayRow> replays;
  std::vector<SpikeRow> spikes;
  std::vector<CauseRow> causes;
};

struct RunRecord {
  std::map<std::string, std::string> attributes;  // of the root
  bool complete = false;
  std::vector<TrainingRun> runs;
};

// Writes FILE.partial row by row, which others may read meanwhile (HDF5's SWMR) and which a crash or an interrupt leaves
// for `--resume`; finish() makes it complete and gives it the name FILE.
class RunWriter {
 public:
  // `runs` are all runs that there will be, with the rows that are there already. `info` are attributes of the root.
  // Throws InputError where FILE exists (unless `overwrite`), EnvironmentError where it cannot be written.
  RunWriter(const std::string& path, const RunInfo& info, const std::vector<TrainingRun>& runs,
            bool overwrite);
  ~RunWriter();
  // `run` counts those of the constructor. Flushed by each call. Throw EnvironmentError ("disk full ...").
  void add(std::size_t run, const StepRow& row);
  void add(std::size_t run, const std::vector<ReplayRow>& rows);
  void add(std::size_t run, const SpikeRow& row, const std::vector<CauseRow>& causes);
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// FILE.partial
std::string partial_run_record(const std::string& path);

// Whatever rows are complete. Throws InputError: not HDF5, not a record of runs, another major version.
RunRecord read_run_record(const std::string& path);

// Takes away all rows of steps from `step` on.
void truncate(TrainingRun& run, std::int64_t step);

}  // namespace sinkscope
