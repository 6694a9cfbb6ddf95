// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <memory>
#include <optional>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/capture/capture.hpp"
#include "src/compare/compare.hpp"
#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "src/report/findings.hpp"
#include "src/report/machine.hpp"
#include "src/report/terminal.hpp"
#include "tools/sinkscope/commands.hpp"
#include "tools/sinkscope/compare_inputs.hpp"
#include "tools/sinkscope/data_files.hpp"
#include "tools/sinkscope/progress.hpp"

namespace sinkscope::cli {
namespace {

struct CompareArguments {
  std::vector<std::string> inputs, suites;
  std::string output, json, junit;
  std::string gate = "default";
  std::string truth = "eigen";
  std::string colour = "auto";
  std::vector<std::string> judged, required;
  CompareOptions options;
  bool overwrite = false, save_tensors = false, quiet = false, verbose = false;
};

// Outputs are refused before the work: those that cannot be written, and those that would replace an input.
void check_targets(const CompareArguments& arguments, const std::vector<NamedProblem>& problems) {
  for (const std::string& target : {arguments.output, arguments.json, arguments.junit}) {
    for (const NamedProblem& named : problems) {
      std::error_code error;
      if (target.empty() || named.problem.capture.empty()) continue;
      if (std::filesystem::equivalent(target, named.problem.capture, error))
        throw InputError(fmt::format("{} is an input: wanted another file to write to", target));
    }
  }
  for (const std::string& target : {arguments.json, arguments.junit}) {
    if (!target.empty()) PendingFile(target, arguments.overwrite);
  }
}

void run_compare(CompareArguments& arguments, Context& context) {
  tidy_path_names(arguments.options.paths, false);
  tidy_path_names(arguments.required, true);
  tidy_path_names(arguments.judged, true);
  Gate gate = read_gate(find_gate(arguments.gate));
  if (!arguments.judged.empty()) judge_only(gate, arguments.judged);
  const std::vector<NamedProblem> problems = collect_inputs(arguments.inputs, arguments.suites);
  check_targets(arguments, problems);
  arguments.options.truth = chosen_truth(arguments.truth);
  const auto run_info = [&] {
    RunInfo info = collect_run_info(context.command_line, arguments.options.threads);
    info.emplace_back("truth", name_of(arguments.options.truth));
    return info;
  };
  std::optional<RecordWriter> record;
  if (!arguments.output.empty()) record.emplace(arguments.output, run_info(), gate, arguments.overwrite);

  CompareOptions options = arguments.options;
  options.keep_outputs = arguments.save_tensors;
  const TerminalStyle style = {wants_colour(arguments.colour), arguments.verbose, arguments.quiet};
  ProgressLine progress(!arguments.quiet, problems.size());
  std::vector<CaseResult> results;
  std::vector<VerdictRow> rows;
  std::vector<std::string> unmet;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    progress.start_case(i);
    progress.update(problems[i].name, "inputs", 0);
    const Case c = make_case(problems[i].problem, problems[i].name, options.threads);
    CaseResult result =
        compare_case(c, gate, options, [&](std::string_view name, std::string_view stage, double share) {
          progress.update(name, stage, share);
        });
    progress.clear();
    fmt::print("{}", render_case(result, style));
    if (options.explain) fmt::print("{}", render_findings(result));
    std::fflush(stdout);
    for (std::string& sentence : unmet_requirements(result, arguments.required))
      unmet.push_back(std::move(sentence));
    if (record) record->add(result, arguments.save_tensors ? &c : nullptr);
    for (PathResult& path : result.paths) {
      rows.insert(rows.end(), path.verdicts.begin(), path.verdicts.end());
      path.outputs = {};
    }
    results.push_back(std::move(result));
  }

  if (record) record->finish();
  if (!arguments.json.empty())
    write_file(arguments.json, to_json(results, run_info(), gate), arguments.overwrite);
  if (!arguments.junit.empty()) write_file(arguments.junit, to_junit(results), arguments.overwrite);
  fmt::print("{}", render_summary(rows, style));
  if (record) fmt::print("record: {}\n", arguments.output);
  context.exit_code = exit_code(rows);
  // What was measured is written all the same: a CI job shows it beside the reason.
  if (!unmet.empty()) throw EnvironmentError(fmt::format("{}", fmt::join(unmet, "\nsinkscope: ")));
}

}  // namespace

void add_compare_command(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("compare", "Run every path beside the truth, measure every head, judge, record");
  auto arguments = std::make_shared<CompareArguments>();
  command->add_option("INPUT", arguments->inputs,
                      "Captures (.safetensors), folders of captures, or quoted problem lines");
  command
      ->add_option("--suite", arguments->suites,
                   "A file of problem lines, or the name of a shipped suite (sinkscope list suites)")
      ->allow_extra_args(false);
  command->add_option("-o,--output", arguments->output,
                      "Write the HDF5 record here; without it nothing is recorded");
  command
      ->add_option("--paths", arguments->options.paths,
                   "Paths to run, by commas (default: all; sinkscope list paths)")
      ->delimiter(',')
      ->allow_extra_args(false);
  add_truth_option(*command, arguments->truth);
  command->add_option("--gate", arguments->gate, "Gate file or the name of a shipped gate")
      ->capture_default_str();
  command
      ->add_option("--judge", arguments->judged,
                   "Judge exactly these paths, by commas; all others are observed")
      ->delimiter(',')
      ->allow_extra_args(false);
  command
      ->add_option("--require", arguments->required,
                   "PATH[:BACKEND] that must have run, by commas, else exit 3")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--repeat", arguments->options.repeat, "Runs of each path, compared bit by bit")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command->add_option("--threads", arguments->options.threads, "Threads (0: all)")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  command->add_option("--json", arguments->json, "Write verdicts as JSON here");
  command->add_option("--junit", arguments->junit, "Write verdicts as JUnit XML here");
  command->add_flag("--explain", arguments->options.explain, "Name the mistake behind what fails, too");
  command->add_flag("--save-tensors", arguments->save_tensors, "Store inputs and outputs in the record too");
  command->add_flag("--overwrite", arguments->overwrite, "Replace output files that exist");
  command->add_flag("-q,--quiet", arguments->quiet, "Failures and the last line only");
  command->add_flag("-v,--verbose", arguments->verbose, "Every head of every tensor")->excludes("--quiet");
  command->add_option("--color", arguments->colour, "auto, always or never")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "always", "never"}));
  command->footer(
      "Examples:\n  sinkscope compare datasets/captures/calm_layer1.safetensors -o calm.h5\n"
      "  sinkscope compare 'b1 hq64 hkv8 sq1024 sk1024 d64 bf16 causal w128 seed=7' --paths "
      "sink_kernel,eager\n"
      "  sinkscope compare --suite smoke -o smoke.h5 --junit smoke.xml --json smoke.json");
  command->callback([arguments, &context] { run_compare(*arguments, context); });
}

}  // namespace sinkscope::cli
