// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <memory>

#include "fmt/format.h"

#include "src/bench/bench.hpp"
#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "src/torch/module.hpp"
#include "tools/sinkscope/commands.hpp"
#include "tools/sinkscope/data_files.hpp"
#include "tools/sinkscope/lab_scenario.hpp"
#include "tools/sinkscope/progress.hpp"

namespace sinkscope::cli {
namespace {

constexpr int kCpuRounds = 7;
constexpr int kGpuRounds = 20;
constexpr int kTrainingRounds = 20;
// Whose steps take tens of milliseconds there.
constexpr const char* kScenarioOnGpu = "step_speed";
constexpr const char* kScenarioOnCpu = "continue_without_sinks";

struct Arguments {
  std::string what, json, device = "auto";
  std::vector<std::string> subjects, contestants;  // subjects: problem lines, or a scenario
  int rounds = 0, threads = 0;
  bool all_heads = false, overwrite = false;
};

int rounds_of(const Arguments& arguments, int usual) {
  return arguments.rounds > 0 ? arguments.rounds : usual;
}

// Where `bench kernel` runs: as asked, else on the GPU where there is one that can.
bool runs_on_gpu(const Arguments& arguments) {
  const bool needs_gpu = !arguments.subjects.empty() || !arguments.contestants.empty();
  const std::string unavailable = gpu_bench_unavailable();
  if (arguments.what != "kernel" || arguments.device == "cpu") {
    if (needs_gpu)
      throw InputError(
          "problem lines and --paths are of `bench kernel` on the GPU, a scenario of `bench training` alone");
    return false;
  }
  if ((needs_gpu || arguments.device == "cuda") && !unavailable.empty()) throw EnvironmentError(unavailable);
  return unavailable.empty();
}

// Prints each problem as it is finished and writes what there is, so that a run that is cut short leaves what it had.
void run_on_gpu(const Arguments& arguments, const Context& context, const BenchProgress& progress,
                ProgressLine& line) {
  const GpuBenchOptions options{arguments.subjects,  arguments.contestants, read_gate(find_gate("default")),
                                arguments.all_heads, arguments.threads,     rounds_of(arguments, kGpuRounds)};
  bool overwrite = arguments.overwrite;
  bench_kernel_on_gpu(options, progress, [&](nlohmann::json figures) {
    line.clear();
    if (figures["problems"].size() == 1) fmt::print("{}", gpu_bench_heading(figures));
    fmt::print("{}", gpu_problem_table(figures["problems"].back()));
    std::fflush(stdout);
    figures["command"] = context.command_line;
    if (!arguments.json.empty()) write_file(arguments.json, figures.dump(2) + "\n", overwrite);
    overwrite = true;  // it is ours now
  });
}

// The scenario that is asked for, on the device that is asked for, else on the GPU where there is one.
Scenario scenario_of(const Arguments& arguments) {
  if (arguments.subjects.size() > 1 || !arguments.contestants.empty())
    throw InputError(
        "`bench training` wants one scenario at most, and no --paths: its runs are the contestants");
  if (const std::string reason = lab::why_no_lab(); !reason.empty()) throw EnvironmentError(reason);
  const TorchModule& torch = torch_module();
  const std::string& no_gpu = torch.unavailable.empty() ? torch.cuda_unavailable : torch.unavailable;
  if (arguments.device == "cuda" && !no_gpu.empty()) throw EnvironmentError(no_gpu);
  const bool cuda = arguments.device != "cpu" && no_gpu.empty();
  const std::string usual = cuda ? kScenarioOnGpu : kScenarioOnCpu;
  return scenario_for(arguments.subjects.empty() ? usual : arguments.subjects.front(), cuda,
                      arguments.threads);
}

void run_training(const Arguments& arguments, const Context& context, const BenchProgress& progress,
                  ProgressLine& line) {
  nlohmann::json figures =
      bench_training(scenario_of(arguments), rounds_of(arguments, kTrainingRounds), lab::open_lab, progress);
  line.clear();
  figures["command"] = context.command_line;
  fmt::print("{}", training_table(figures));
  if (!arguments.json.empty()) write_file(arguments.json, figures.dump(2) + "\n", arguments.overwrite);
}

void run(const Arguments& arguments, const Context& context) {
  if (!arguments.json.empty()) PendingFile(arguments.json, arguments.overwrite);  // refused before the work
  ProgressLine line(true, 1);
  const BenchProgress progress = [&](std::string_view what, double share) {
    line.update("bench", what, share);
  };
  if (arguments.what == "training") {
    run_training(arguments, context, progress, line);
    return;
  }
  if (runs_on_gpu(arguments)) {
    run_on_gpu(arguments, context, progress, line);
    return;
  }
  const BenchOptions options{arguments.threads, rounds_of(arguments, kCpuRounds)};
  nlohmann::json figures = arguments.what == "kernel"   ? bench_kernel_on_cpu(options, progress)
                           : arguments.what == "truth"  ? bench_truth_cuda(options, progress)
                           : arguments.what == "memory" ? bench_reference_memory(options)
                                                        : bench_reference(options, progress);
  line.clear();
  figures["command"] = context.command_line;
  const std::string text = figures.dump(2) + "\n";
  fmt::print("{}", text);
  if (!arguments.json.empty()) write_file(arguments.json, text, arguments.overwrite);
}

}  // namespace

void add_bench_command(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("bench", "Measure speed: the truth, its memory, the kernel, or a training step");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("WHAT", arguments->what, "reference, memory, truth, kernel or training")
      ->required()
      ->check(CLI::IsMember({"reference", "memory", "truth", "kernel", "training"}));
  command->add_option(
      "SUBJECT", arguments->subjects,
      "kernel, on the GPU: problem lines to time; training: a scenario (step_speed on a GPU, else "
      "continue_without_sinks)");
  command
      ->add_option("--paths", arguments->contestants,
                   "kernel, on the GPU: PATH, PATH/no_sink or PATH/residual, with commas between them")
      ->delimiter(',');
  command
      ->add_option("--device", arguments->device,
                   "kernel, training: cuda, cpu, or auto (the GPU where there is one)")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cuda", "cpu"}));
  command->add_flag("--all-heads", arguments->all_heads,
                    "kernel, on the GPU: check every head of what was timed, not one key/value head's");
  command->add_option("--json", arguments->json, "Write the figures here too");
  command->add_option("--rounds", arguments->rounds, "Timed rounds (0: 20 on the GPU or of training, else 7)")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000));
  command->add_option("--threads", arguments->threads, "Threads (0: all)")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  command->add_flag("--overwrite", arguments->overwrite, "Replace the file if it exists");
  command->footer(
      "Examples:\n  sinkscope bench reference --json reference.json\n"
      "  sinkscope bench kernel \"b1 hq64 hkv8 sq8192 sk8192 d64 bf16 causal w128\"\n"
      "  sinkscope bench training step_speed --device cuda");
  command->callback([arguments, &context] { run(*arguments, context); });
}

}  // namespace sinkscope::cli
