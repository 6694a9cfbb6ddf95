// SPDX-License-Identifier: Apache-2.0
#include "src/study/study.hpp"

#include <algorithm>
#include <filesystem>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/core/error.hpp"
#include "src/study/rows.hpp"
#include "src/study/training.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

// Of a plan that is to end early.
void cut(RunPlan& plan, std::int64_t steps) {
  std::int64_t left = steps;
  for (Phase& phase : plan.phases) {
    phase.steps = std::min(phase.steps, left);
    left -= phase.steps;
  }
  std::erase_if(plan.phases, [](const Phase& phase) { return phase.steps == 0; });
}

// The start, where there is one, and the runs that are wanted, in the order of the scenario.
std::vector<RunPlan> chosen_plans(const Scenario& scenario, const StudyOptions& options) {
  std::vector<std::string> known;
  for (const RunPlan& run : scenario.runs) known.push_back(run.name);
  for (const std::string& name : options.runs) {
    if (std::find(known.begin(), known.end(), name) == known.end())
      throw InputError(
          fmt::format("scenario {} has no run '{}', it has {}", scenario.name, name, fmt::join(known, ", ")));
  }
  std::vector<RunPlan> plans;
  if (!scenario.start.phases.empty()) plans.push_back(scenario.start);
  for (RunPlan run : scenario.runs) {
    const bool is_wanted = options.runs.empty() || std::find(options.runs.begin(), options.runs.end(),
                                                             run.name) != options.runs.end();
    if (!is_wanted) continue;
    if (options.steps > 0) cut(run, options.steps);
    plans.push_back(std::move(run));
  }
  return plans;
}

std::vector<TrainingRun> fresh_runs(const std::vector<RunPlan>& plans, const RunShape& shape) {
  std::vector<TrainingRun> runs;
  for (const RunPlan& plan : plans) {
    const lab::StepSettings& last = plan.phases.back().settings;
    TrainingRun run;
    run.name = plan.name;
    for (const Phase& phase : plan.phases) run.phase_paths.push_back(phase.settings.training_path);
    run.training_path = last.training_path;
    run.rollout_path = last.kind == lab::StepKind::kReinforce ? last.rollout_path : "";
    run.shape = shape;
    runs.push_back(std::move(run));
  }
  return runs;
}

// The rows up to the run's newest checkpoint; none where that is of a step that the record does not have: a machine that
// went down may have kept the one and lost the other.
void take_rows(TrainingRun& run, TrainingRun&& old, const Checkpoints& checkpoints) {
  const std::optional<Checkpoints::Found> newest = checkpoints.newest(run.name);
  const bool has_all = newest && newest->step <= static_cast<std::int64_t>(old.steps.size());
  truncate(old, has_all ? newest->step : 0);
  run.steps = std::move(old.steps);
  run.replays = std::move(old.replays);
  run.spikes = std::move(old.spikes);
  run.causes = std::move(old.causes);
}

// A scenario's own, or another that was asked for.
std::string seed_text(const Scenario& scenario) {
  return std::to_string(scenario.lab.model.seed);
}

// The rows of an unfinished record.
void take_over(std::vector<TrainingRun>& runs, const Scenario& scenario, const StudyOptions& options,
               const Checkpoints& checkpoints) {
  std::error_code error;
  if (!fs::exists(partial_run_record(options.output), error) && fs::exists(options.output, error))
    throw InputError(fmt::format("{} is finished, --resume wants one that was interrupted", options.output));
  RunRecord old = read_run_record(partial_run_record(options.output));
  if (old.attributes["scenario"] != scenario.toml) {
    throw InputError(
        fmt::format("{} is of another scenario than {}, or that has changed since; --overwrite starts again",
                    partial_run_record(options.output), scenario.name));
  }
  const std::string seed = seed_text(scenario);
  if (const auto found = old.attributes.find("seed"); found != old.attributes.end() && found->second != seed)
    throw InputError(fmt::format("{} is of seed {}, wanted {}; --overwrite starts again",
                                 partial_run_record(options.output), found->second, seed));
  for (TrainingRun& before : old.runs) {
    const auto same = [&](const TrainingRun& of) { return of.name == before.name; };
    const auto run = std::find_if(runs.begin(), runs.end(), same);
    if (run != runs.end()) {
      take_rows(*run, std::move(before), checkpoints);
    } else if (!before.steps.empty()) {
      throw InputError(
          fmt::format("{} has {} steps of the run '{}', which --runs leaves out and --resume would drop",
                      partial_run_record(options.output), before.steps.size(), before.name));
    }
  }
}

// One that never took a step is replaced: the lab has refused its configuration.
void refuse_unfinished(const StudyOptions& options) {
  std::error_code error;
  const std::string partial = partial_run_record(options.output);
  if (options.overwrite || !fs::exists(partial, error)) return;
  const std::vector<TrainingRun> runs = read_run_record(partial).runs;
  if (std::any_of(runs.begin(), runs.end(), [](const TrainingRun& run) { return !run.steps.empty(); })) {
    throw InputError(fmt::format(
        "{} is there from a run that did not finish; --resume goes on with it, --overwrite starts again",
        partial));
  }
}

}  // namespace

RunRecord run_study(const Scenario& scenario, const StudyOptions& options, const RunInfo& info,
                    const LabOpener& open, const StudyProgress& progress) {
  const std::vector<RunPlan> plans = chosen_plans(scenario, options);
  const Checkpoints checkpoints(options.output + ".state");
  std::vector<TrainingRun> runs = fresh_runs(plans, shape_of(scenario.lab.model));
  if (options.resume) {
    take_over(runs, scenario, options, checkpoints);
  } else {
    refuse_unfinished(options);
    checkpoints.remove_all();
  }
  RunInfo attributes = info;
  attributes.emplace_back("scenario_name", scenario.name);
  attributes.emplace_back("scenario", scenario.toml);
  attributes.emplace_back("seed", seed_text(scenario));
  RunWriter writer(options.output, attributes, runs, options.overwrite);

  const bool has_start = plans.front().name == kStartName;
  for (std::size_t i = 0; i < plans.size(); ++i) {
    if (static_cast<std::int64_t>(runs[i].steps.size()) >= steps_of(plans[i])) continue;
    const bool goes_on = has_start && i > 0;
    const std::unique_ptr<lab::Lab> lab = open(scenario.lab);
    const TrainingRun& before = runs[i].steps.empty() && goes_on ? runs[0] : runs[i];
    if (!before.steps.empty()) lab->load(checkpoints.newest(before.name).value().path);
    Watch watch;
    if (goes_on) watch.recall(runs[0], plans[0], -steps_of(plans[0]));
    watch.recall(runs[i], plans[i]);
    train({scenario, plans[i], options, checkpoints, progress, writer, i, i + 1 == plans.size()}, *lab, watch,
          runs[i]);
  }
  writer.finish();
  checkpoints.remove_all();
  return read_run_record(options.output);
}

}  // namespace sinkscope
