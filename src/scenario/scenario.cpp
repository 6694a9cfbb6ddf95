// SPDX-License-Identifier: Apache-2.0
#include "src/scenario/scenario.hpp"

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "src/settings/settings.hpp"

namespace sinkscope {
namespace {

constexpr std::int64_t kMany = 1'000'000'000;
constexpr double kLarge = 1e9;

// A key that need not be there keeps the value that it has.
void take(Settings& from, const char* key, std::int64_t least, std::int64_t& into) {
  if (from.has(key)) into = from.integer(key, least, kMany);
}
void take(Settings& from, const char* key, double least, double most, double& into) {
  if (from.has(key)) into = from.number(key, least, most);
}
void take(Settings& from, const char* key, std::string& into) {
  if (from.has(key)) into = from.word(key);
}

lab::Precision read_precision(Settings& table) {
  const std::string word = table.choice("precision", {"fp32", "tf32", "bf16"});
  if (word == "fp32") return lab::Precision::kFp32;
  return word == "tf32" ? lab::Precision::kTf32 : lab::Precision::kBf16;
}

lab::ModelShape read_model(Settings table, lab::LabConfig& config) {
  lab::ModelShape model;
  take(table, "layers", 1, model.layers);
  take(table, "width", 1, model.width);
  take(table, "hq", 1, model.hq);
  take(table, "hkv", 1, model.hkv);
  take(table, "d", 1, model.d);
  take(table, "window", 0, model.window);
  take(table, "intermediate", 1, model.intermediate);
  take(table, "experts", 1, model.experts);
  take(table, "experts_per_token", 1, model.experts_per_token);
  take(table, "vocabulary", 2, model.vocabulary);
  take(table, "rope_theta", 1, kLarge, model.rope_theta);
  take(table, "sink_mean", -100, 100, model.sink_mean);
  take(table, "sink_std", 0, 100, model.sink_std);
  if (table.has("seed")) model.seed = static_cast<std::uint64_t>(table.integer("seed", 0, kMany));
  if (table.has("precision")) config.precision = read_precision(table);
  table.done();
  return model;
}

lab::Optimizer read_optimizer(Settings table) {
  lab::Optimizer optimizer;
  take(table, "beta1", 0, 1, optimizer.beta1);
  take(table, "beta2", 0, 1, optimizer.beta2);
  take(table, "epsilon", 0, 1, optimizer.epsilon);
  take(table, "weight_decay", 0, 1, optimizer.weight_decay);
  take(table, "warmup", 0, optimizer.warmup);
  table.done();
  return optimizer;
}

void read_task(Settings table, lab::LabConfig& config) {
  config.sorting = table.choice("kind", {"text", "sorting"}) == "sorting";
  if (config.sorting) {
    take(table, "digits", 1, config.sort.digits);
    take(table, "batch", 1, config.sort.batch);
    take(table, "prompts", 1, config.sort.prompts);
    take(table, "rollouts", 2, config.sort.rollouts);
  } else {
    config.text.path = table.word("path");
    take(table, "batch", 1, config.text.batch);
    take(table, "length", 2, config.text.length);
    if (table.has("packed")) config.text.packed = table.boolean("packed");
  }
  table.done();
}

// The keys of a step's settings, those that a table has.
void read_settings(Settings& table, lab::StepSettings& settings) {
  if (table.has("kind")) {
    const bool reinforce = table.choice("kind", {"supervised", "reinforce"}) == "reinforce";
    settings.kind = reinforce ? lab::StepKind::kReinforce : lab::StepKind::kSupervised;
  }
  take(table, "training_path", settings.training_path);
  take(table, "rollout_path", settings.rollout_path);
  take(table, "learning_rate", 0, 1, settings.learning_rate);
  take(table, "norm_clip", 0, kLarge, settings.norm_clip);
  take(table, "ratio_clip", 0, kLarge, settings.ratio_clip);
  take(table, "kl_weight", 0, kLarge, settings.kl_weight);
  take(table, "updates", 1, settings.updates);
}

std::vector<Phase> read_phases(Settings& run, const lab::StepSettings& defaults) {
  std::vector<Phase> phases;
  for (Settings& table : run.tables("phase")) {
    Phase phase = {table.integer("steps", 1, kMany), defaults};
    read_settings(table, phase.settings);
    table.done();
    phases.push_back(std::move(phase));
  }
  return phases;
}

// The name becomes that of a group of the record and of files.
bool is_name(const std::string& name) {
  return name != kStartName && std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                  c == '-';
         });
}

std::vector<RunPlan> read_runs(Settings& root, const lab::StepSettings& defaults) {
  std::vector<RunPlan> runs;
  for (Settings& table : root.tables("run")) {
    RunPlan plan;
    plan.name = table.word("name");
    const auto same = [&](const RunPlan& other) { return other.name == plan.name; };
    if (!is_name(plan.name) || std::any_of(runs.begin(), runs.end(), same))
      table.refuse("name", "letters, digits, _ and - that name no other run and not the start");
    plan.phases = read_phases(table, defaults);
    table.done();
    runs.push_back(std::move(plan));
  }
  return runs;
}

Watching read_watching(Settings table) {
  Watching watching;
  take(table, "observe_every", 0, watching.observe_every);
  take(table, "exact_every", 0, watching.exact_every);
  if (table.has("paths")) watching.paths = table.words("paths", "path names");
  take(table, "checkpoint_every", 0, watching.checkpoint_every);
  take(table, "explained", 0, watching.explained);
  table.done();
  return watching;
}

}  // namespace

Scenario parse_scenario(std::string_view toml, const std::string& name) {
  Settings root = Settings::parse(toml, "scenario " + name);
  Scenario scenario;
  scenario.name = name;
  scenario.toml = toml;
  scenario.summary = root.word("summary");
  scenario.lab.model = read_model(root.table("model"), scenario.lab);
  if (root.has("optimizer")) scenario.lab.optimizer = read_optimizer(root.table("optimizer"));
  read_task(root.table("task"), scenario.lab);
  lab::StepSettings defaults;
  if (root.has("step")) {
    Settings table = root.table("step");
    read_settings(table, defaults);
    table.done();
  }
  scenario.start.name = kStartName;
  if (root.has("start")) {
    Settings table = root.table("start");
    scenario.start.phases = read_phases(table, defaults);
    table.done();
  }
  scenario.runs = read_runs(root, defaults);
  if (root.has("record")) scenario.watching = read_watching(root.table("record"));
  root.done();
  return scenario;
}

Scenario read_scenario(const std::string& path) {
  return parse_scenario(read_file(path, "scenario"), std::filesystem::path(path).stem().string());
}

std::vector<std::string> paths_of(const Scenario& scenario) {
  std::vector<std::string> paths = scenario.watching.paths;
  std::vector<RunPlan> plans = scenario.runs;
  plans.push_back(scenario.start);
  for (const RunPlan& plan : plans) {
    for (const Phase& phase : plan.phases) {
      paths.push_back(phase.settings.training_path);
      if (phase.settings.kind == lab::StepKind::kReinforce) paths.push_back(phase.settings.rollout_path);
    }
  }
  std::sort(paths.begin(), paths.end());
  paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
  return paths;
}

std::int64_t steps_of(const RunPlan& plan) {
  std::int64_t steps = 0;
  for (const Phase& phase : plan.phases) steps += phase.steps;
  return steps;
}

std::size_t phase_at(const RunPlan& plan, std::int64_t step) {
  std::int64_t end = 0;
  for (std::size_t i = 0; i < plan.phases.size(); ++i) {
    end += plan.phases[i].steps;
    if (step < end) return i;
  }
  throw std::out_of_range(fmt::format("step {} of {}", step, end));
}

}  // namespace sinkscope
