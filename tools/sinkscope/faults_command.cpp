// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

#include "src/calibrate/fault_table.hpp"
#include "src/core/file.hpp"
#include "tools/sinkscope/commands.hpp"
#include "tools/sinkscope/compare_inputs.hpp"
#include "tools/sinkscope/data_files.hpp"
#include "tools/sinkscope/progress.hpp"

namespace sinkscope::cli {
namespace {

struct FaultsArguments {
  std::vector<std::string> inputs, suites;
  std::string gate = "default", output, json;
  FaultTableOptions options;
  bool overwrite = false, quiet = false;
};

void run_faults(FaultsArguments& arguments, Context& context) {
  const Gate gate = read_gate(find_gate(arguments.gate));
  if (arguments.inputs.empty() && arguments.suites.empty()) arguments.suites = {"faults"};
  for (NamedProblem& named : collect_inputs(arguments.inputs, arguments.suites))
    arguments.options.problems.push_back(std::move(named.problem));
  for (const std::string& file : {arguments.output, arguments.json}) {
    if (!file.empty()) PendingFile(file, arguments.overwrite);  // refused before the work
  }
  ProgressLine line(!arguments.quiet, 1);
  const FaultTable table = run_fault_table(
      gate, arguments.options,
      [&](std::string_view name, std::string_view stage, double share) { line.update(name, stage, share); });
  line.clear();
  fmt::print("{}", summary_of(table));
  if (!arguments.output.empty())
    write_file(arguments.output, to_markdown(table, gate, context.command_line), arguments.overwrite);
  if (!arguments.json.empty())
    write_file(arguments.json, to_json(table, gate, context.command_line).dump(2) + "\n",
               arguments.overwrite);
  context.exit_code = table.empty()   ? ExitCode::kEnvironment
                      : table.holds() ? ExitCode::kPassed
                                      : ExitCode::kFailed;
}

}  // namespace

void add_faults_command(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand(
      "faults", "Plant every fault, and tabulate who catches it and what explain says of it");
  auto arguments = std::make_shared<FaultsArguments>();
  command->add_option("INPUT", arguments->inputs,
                      "Captures (.safetensors), folders of captures, or quoted problem lines");
  command
      ->add_option("--suite", arguments->suites,
                   "A file of problem lines, or the name of a shipped suite (default: faults)")
      ->allow_extra_args(false);
  command
      ->add_option("--faults", arguments->options.faults,
                   "Faults, by commas (default: all; sinkscope list faults)")
      ->delimiter(',')
      ->allow_extra_args(false);
  command
      ->add_option("--seeds", arguments->options.seeds, "Seeds of each generated problem; a capture has one")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  command
      ->add_option("--withheld-seeds", arguments->options.withheld_seeds,
                   "Of these, so many are also explained with the cause and its family withheld")
      ->capture_default_str()
      ->check(CLI::Range(0, 10000));
  command->add_option("--gate", arguments->gate, "Gate file or the name of a shipped gate")
      ->capture_default_str();
  command->add_option("-o,--output", arguments->output, "Write the Markdown table here");
  command->add_option("--json", arguments->json, "Write the counts and every miss as JSON here");
  command->add_option("--threads", arguments->options.threads, "Threads (0: all)")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  command->add_flag("--overwrite", arguments->overwrite, "Replace output files that exist");
  command->add_flag("-q,--quiet", arguments->quiet, "No progress");
  command->footer(
      "Ends with 1 where explain names less than 95 % of the visible faults rightly, finds something in a "
      "healthy path, or\n"
      "the gate passes a visible fault; with 3 where no fault can be seen.\n"
      "Examples:\n  sinkscope faults --seeds 32 -o reports/faults.md --overwrite\n"
      "  sinkscope faults 'b1 hq8 hkv2 sq300 sk300 d64 bf16 causal w128' --faults "
      "window_plus_one,window_ignored");
  command->callback([arguments, &context] { run_faults(*arguments, context); });
}

}  // namespace sinkscope::cli
