// SPDX-License-Identifier: Apache-2.0
#include "src/study/training.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/study/blocks.hpp"
#include "src/study/rows.hpp"
#include "src/study/spike_causes.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool is_every(std::int64_t interval, std::int64_t step) {
  return interval > 0 && step % interval == 0;
}

// The training path first.
std::vector<std::string> replayed_paths(const RunContext& context, const lab::StepSettings& settings) {
  std::vector<std::string> paths = {settings.training_path};
  for (const std::string& path : context.scenario.watching.paths) {
    if (std::find(paths.begin(), paths.end(), path) == paths.end()) paths.push_back(path);
  }
  return paths;
}

// Where a spike's captures go: beside the record, and named after it.
std::string capture_stem(const RunContext& context, std::int64_t step) {
  const fs::path folder = fs::path(context.options.output).replace_extension("").string() + "_spikes";
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw EnvironmentError(fmt::format("{} cannot be made: {}", folder.string(), error.message()));
  return (folder / fmt::format("{}_step{}", context.plan.name, step)).string();
}

std::int64_t layer_of_largest_error(const std::vector<BlockNorms>& blocks, std::int64_t layers) {
  std::vector<double> errors(static_cast<std::size_t>(layers));
  for (const BlockNorms& block : blocks) {
    if (block.name.layer >= 0) errors[static_cast<std::size_t>(block.name.layer)] += block.error2;
  }
  return std::max_element(errors.begin(), errors.end()) - errors.begin();
}

SpikeRow spike_row(const ExplainedSpike& explained, const BeforeSpike& before, const RunShape& shape) {
  SpikeRow row;
  row.median = before.median;
  row.exact_median = before.exact_median;
  row.spread = before.spread;
  row.exact_norm = std::sqrt(explained.exact2);
  row.fraction = explained.fraction;
  row.error_share = explained.error2 / explained.path2;
  row.verdict = text(explained.verdict);
  row.share = to_arrays(explained.shares, shape);
  return row;
}

// A norm that is not finite has no fraction to be explained.
SpikeRow unexplainable(const BeforeSpike& before) {
  SpikeRow row;
  row.median = before.median;
  row.exact_median = before.exact_median;
  row.spread = before.spread;
  row.exact_norm = row.fraction = row.error_share = row.share.outside =
      std::numeric_limits<double>::quiet_NaN();
  row.verdict = "not finite";
  return row;
}

class Run {
 public:
  Run(const RunContext& context, lab::Lab& lab, Watch& watch, TrainingRun& run)
      : context_(context), lab_(lab), watch_(watch), run_(run) {}

  void take_step(std::int64_t step, bool is_last) {
    const std::size_t phase = phase_at(context_.plan, step);
    lab::StepSettings settings = context_.plan.phases[phase].settings;
    const Watching& watching = context_.scenario.watching;
    settings.observe = is_every(watching.observe_every, step);
    const Clock::time_point start = Clock::now();
    const lab::StepResult result = lab_.gradient(settings);
    const double gradient_seconds = seconds_since(start);
    StepRow row = step_row(result, settings.kind, run_.shape);
    row.step = step;
    row.phase = static_cast<std::int64_t>(phase);
    const StepJudgement judged = watch_.next(settings.kind, result.gradient_norm);
    row.z = judged.z;
    const bool sampled = watching.exact_every > 0 && (is_every(watching.exact_every, step) || is_last);
    if (sampled || judged.spike) look_closer(row, judged, settings);
    const Clock::time_point middle = Clock::now();
    lab_.apply(settings);
    row.seconds = gradient_seconds + seconds_since(middle);
    context_.writer.add(context_.index, row);
    run_.steps.push_back(std::move(row));
  }

 private:
  // Before the weights change: the same batch through other attentions.
  void look_closer(const StepRow& row, const StepJudgement& judged, const lab::StepSettings& settings) {
    const BeforeSpike before = watch_.before(row.step, judged);
    if (judged.spike && !std::isfinite(row.gradient_norm)) {
      add_spike(row, unexplainable(before), {});
      return;
    }
    const std::vector<lab::ReplayedPath> replayed = lab_.replay(replayed_paths(context_, settings), settings);
    const std::vector<ReplayRow> rows = replay_rows(replayed, row.step, run_.shape);
    context_.writer.add(context_.index, rows);
    run_.replays.insert(run_.replays.end(), rows.begin(), rows.end());
    if (judged.spike) explain(row, before, replayed.front(), settings);
    watch_.add_exact(row.step, std::sqrt(sum(rows.front().norm2)));
  }

  void explain(const StepRow& row, const BeforeSpike& before, const lab::ReplayedPath& replayed,
               const lab::StepSettings& settings) {
    const std::vector<BlockNorms> blocks = block_norms(replayed, run_.shape);
    const ExplainedSpike explained = explain_spike(blocks, before, SpikeRule{}.threshold);
    SpikeRow spike = spike_row(explained, before, run_.shape);
    std::vector<CauseRow> causes;
    if (static_cast<std::int64_t>(run_.spikes.size()) < context_.scenario.watching.explained) {
      const std::string stem = capture_stem(context_, row.step);
      const std::string batch = stem + "_batch.safetensors";
      const std::int64_t layer = layer_of_largest_error(blocks, run_.shape.layers);
      const std::string attention = fmt::format("{}_layer{}.safetensors", stem, layer);
      for (const std::string& file : {batch, attention}) fs::remove(file);  // of a run that was interrupted
      lab_.capture_batch(batch);
      lab_.capture_attention(layer, attention, settings);
      const double rise = explained.path2 - before.median * before.median;
      causes = causes_of(lab_, settings, {row.step, explained.path2, explained.exact2, rise}, attention,
                         context_.options.gate, context_.scenario.lab.threads);
      spike.capture =
          fs::path(batch).lexically_relative(fs::path(context_.options.output).parent_path()).string();
    }
    add_spike(row, std::move(spike), causes);
  }

  void add_spike(const StepRow& row, SpikeRow spike, const std::vector<CauseRow>& causes) {
    spike.step = row.step;
    spike.z = row.z;
    spike.gradient_norm = row.gradient_norm;
    context_.writer.add(context_.index, spike, causes);
    run_.spikes.push_back(std::move(spike));
    run_.causes.insert(run_.causes.end(), causes.begin(), causes.end());
  }

  const RunContext& context_;
  lab::Lab& lab_;
  Watch& watch_;
  TrainingRun& run_;
};

}  // namespace

void train(const RunContext& context, lab::Lab& lab, Watch& watch, TrainingRun& run) {
  const std::int64_t end = steps_of(context.plan);
  Run steps(context, lab, watch, run);
  for (auto step = static_cast<std::int64_t>(run.steps.size()); step < end; ++step) {
    steps.take_step(step, step + 1 == end);
    const bool is_end = step + 1 == end;
    if (is_end ? !context.is_last : is_every(context.scenario.watching.checkpoint_every, step + 1))
      context.checkpoints.save(run.name, step + 1, lab);
    if (context.progress) context.progress(run.name, step + 1, end, run.steps.back());
  }
}

}  // namespace sinkscope
