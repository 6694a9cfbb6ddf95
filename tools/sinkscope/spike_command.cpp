// SPDX-License-Identifier: Apache-2.0
// `spike`: training runs of a scenario, watched, recorded, explained and judged.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "src/lab/lab.hpp"
#include "src/report/runs.hpp"
#include "src/scenario/scenario.hpp"
#include "src/study/run_gate.hpp"
#include "src/study/study.hpp"
#include "src/torch/module.hpp"
#include "tools/sinkscope/commands.hpp"
#include "tools/sinkscope/data_files.hpp"
#include "tools/sinkscope/lab_scenario.hpp"
#include "tools/sinkscope/progress.hpp"

namespace sinkscope::cli {
namespace {

struct SpikeArguments {
  std::string scenario, show, gate, device = "cpu";
  bool list = false, judge = false, quiet = false;
  int threads = 0;
  std::optional<std::int64_t> seed;
  StudyOptions options;
};

void list_scenarios() {
  for (const std::string& name : scenario_names()) {
    const Scenario scenario = read_scenario(find_scenario(name));
    fmt::print("{:<24} {}\n", name, scenario.summary);
    for (const RunPlan& run : scenario.runs)
      fmt::print("{:<24}   {}, {} steps\n", "", run.name, steps_of(run));
  }
}

ExitCode judge(const RunRecord& record, const RunLimits& limits) {
  std::vector<RunVerdict> verdicts;
  for (const TrainingRun& run : record.runs) {
    if (run.name != kStartName) verdicts.push_back(judge_run(run, limits));
  }
  fmt::print("{}", render_run_verdicts(verdicts));
  return exit_code(verdicts);
}

// "loss 1.23, reward 0.8, |g| 1.1"
std::string stage_of(std::int64_t done, std::int64_t of, const StepRow& row) {
  const std::string reward = row.reward == row.reward ? fmt::format(", reward {:.3g}", row.reward) : "";
  return fmt::format("step {}/{}, loss {:.4g}{}, |g| {:.3g}", done, of, row.loss, reward, row.gradient_norm);
}

// What will be trained, in its order.
std::vector<std::string> run_names(const Scenario& scenario, const StudyOptions& options) {
  std::vector<std::string> names;
  if (!scenario.start.phases.empty()) names.push_back(scenario.start.name);
  for (const RunPlan& run : scenario.runs) {
    const auto& chosen = options.runs;
    if (chosen.empty() || std::find(chosen.begin(), chosen.end(), run.name) != chosen.end())
      names.push_back(run.name);
  }
  return names;
}

void check_paths(const Scenario& scenario) {
  for (const std::string& path : paths_of(scenario)) {
    try {
      lab::check_path(path);
    } catch (const InputError& error) {
      throw InputError(fmt::format("scenario {}: {}, or exact", scenario.name, error.what()));
    }
  }
}

RunRecord train(SpikeArguments& arguments, const Context& context) {
  if (const std::string reason = lab::why_no_lab(); !reason.empty()) throw EnvironmentError(reason);
  Scenario scenario = scenario_for(arguments.scenario, arguments.device == "cuda", arguments.threads);
  check_paths(scenario);  // not after hours
  if (arguments.seed) scenario.lab.model.seed = static_cast<std::uint64_t>(*arguments.seed);
  StudyOptions options = arguments.options;
  if (options.output.empty()) options.output = scenario.name + ".h5";
  options.gate = read_gate(find_gate("default"));
  say_when_interrupted(
      fmt::format("{} is kept: --resume goes on with it", partial_run_record(options.output)));
  torch_module();  // its version belongs to what the record says of the machine
  const std::vector<std::string> runs = run_names(scenario, options);
  ProgressLine progress(!arguments.quiet, runs.size());
  const auto show = [&](const std::string& run, std::int64_t done, std::int64_t of, const StepRow& row) {
    progress.start_case(static_cast<std::size_t>(std::find(runs.begin(), runs.end(), run) - runs.begin()));
    progress.update(run, stage_of(done, of, row), static_cast<double>(done) / static_cast<double>(of));
  };
  RunRecord record = run_study(scenario, options, collect_run_info(context.command_line, arguments.threads),
                               lab::open_lab, show);
  progress.clear();
  fmt::print("{}record: {}\n", render_runs(record), options.output);
  return record;
}

void run_spike(SpikeArguments& arguments, Context& context) {
  const int asked =
      (arguments.list ? 1 : 0) + (arguments.show.empty() ? 0 : 1) + (arguments.scenario.empty() ? 0 : 1);
  if (asked != 1) throw InputError("spike wants exactly one of SCENARIO, --list and --show RECORD");
  if (arguments.list) {
    list_scenarios();
    return;
  }
  // Before the training, which may take hours.
  RunLimits limits;
  if (arguments.judge)
    limits = read_run_limits(find_spike_gate(arguments.gate.empty() ? "default" : arguments.gate));
  RunRecord record;
  if (arguments.show.empty()) {
    record = train(arguments, context);
  } else {
    if (!arguments.options.runs.empty() || arguments.options.steps > 0 || arguments.seed)
      throw InputError("--runs, --steps and --seed are of a training, --show shows a whole record");
    const std::string partial = partial_run_record(arguments.show);
    const bool is_unfinished = !std::filesystem::exists(arguments.show) && std::filesystem::exists(partial);
    record = read_run_record(is_unfinished ? partial : arguments.show);
    fmt::print("{}", render_runs(record));
  }
  if (arguments.judge) context.exit_code = judge(record, limits);
}

}  // namespace

void add_spike_command(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand(
      "spike", "Train a small model through several attentions, and explain its gradient spikes");
  auto arguments = std::make_shared<SpikeArguments>();
  command->add_option("SCENARIO", arguments->scenario,
                      "A scenario file, or the name of one that comes with the tool");
  command->add_flag("--list", arguments->list, "List the scenarios that come with the tool, and their runs");
  command->add_option("--show", arguments->show, "Show the record of an earlier training, finished or not");
  command->add_option("-o,--output", arguments->options.output,
                      "The HDF5 record (default: the scenario's name in this folder)");
  command->add_option("--runs", arguments->options.runs, "Runs of the scenario, by commas (default: all)")
      ->delimiter(',')
      ->allow_extra_args(false);
  command
      ->add_option("--steps", arguments->options.steps,
                   "Steps of each run at most (0: the scenario's); the start is trained whole")
      ->capture_default_str()
      ->check(CLI::Range(0, 1'000'000'000));
  command
      ->add_option("--seed", arguments->seed,
                   "Of the weights, the data and the sampling (default: the scenario's)")
      ->check(CLI::Range(0, 1'000'000'000));
  command->add_flag("--resume", arguments->options.resume, "Go on with a training that was interrupted");
  CLI::Option* gate = command->add_option("--gate", arguments->gate,
                                          "Judge the runs: a file of limits or the name of a shipped one");
  gate->expected(0, 1);
  command->add_option("--device", arguments->device, "cpu or cuda")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda"}));
  command->add_option("--threads", arguments->threads, "Threads (0: all)")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  command->add_flag("--overwrite", arguments->options.overwrite, "Replace a record that exists");
  command->add_flag("-q,--quiet", arguments->quiet, "No progress");
  command->footer(
      "Examples:\n  sinkscope spike grpo_mismatch -o grpo.h5\n"
      "  sinkscope spike continue_without_sinks --runs sink_kernel --gate\n"
      "  sinkscope spike --show grpo.h5 --gate default");
  command->callback([arguments, gate, &context] {
    arguments->judge = gate->count() > 0;
    run_spike(*arguments, context);
  });
}

}  // namespace sinkscope::cli
