// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <optional>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "src/capture/capture.hpp"
#include "src/compare/compare.hpp"
#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "src/explain/explain.hpp"
#include "src/record/stored.hpp"
#include "src/report/findings.hpp"
#include "src/report/stages.hpp"
#include "src/report/training.hpp"
#include "tools/sinkscope/commands.hpp"
#include "tools/sinkscope/compare_inputs.hpp"
#include "tools/sinkscope/data_files.hpp"
#include "tools/sinkscope/progress.hpp"

namespace sinkscope::cli {
namespace {

struct ExplainArguments {
  std::vector<std::string> inputs, suites;
  std::string output, json;
  std::string gate = "default", truth = "eigen";
  CompareOptions options;
  bool blind = false, overwrite = false, quiet = false, verbose = false;
};

void print_blind_spots(const std::string& name, const std::vector<BlindSpot>& spots) {
  fmt::print("{}: what this input could not have shown\n", name);
  for (const BlindSpot& spot : spots) fmt::print("  {:<18} {}\n", spot.cause, spot.reason);
  if (spots.empty()) fmt::print("  nothing: every cause of the catalogue would be seen\n");
}

nlohmann::json json_of(const std::string& problem, const std::vector<BlindSpot>& spots) {
  nlohmann::json list = nlohmann::json::array();
  for (const BlindSpot& spot : spots)
    list.push_back({{"problem", problem}, {"cause", spot.cause}, {"reason", spot.reason}});
  return list;
}

// Whatever was found out is a success; where nothing could be looked at, why not.
ExitCode exit_code_of(const std::vector<CaseResult>& results) {
  ExitCode code = ExitCode::kEnvironment;
  for (const CaseResult& result : results) {
    for (const PathResult& path : result.paths) {
      if (!path.explanation.findings.empty()) return ExitCode::kPassed;
      for (const VerdictRow& row : path.verdicts) {
        if (row.verdict == Verdict::kError) code = ExitCode::kInternal;
        if (row.verdict == Verdict::kInconclusive && code != ExitCode::kInternal)
          code = ExitCode::kInconclusive;
      }
    }
  }
  return code;
}

// A record brings the paths that may be asked for.
void check_stored_paths(const std::vector<std::string>& wanted, const std::vector<NamedProblem>& problems) {
  for (const NamedProblem& named : problems) {
    for (const std::string& name : wanted) {
      if (!named.stored) break;
      const std::vector<PathResult>& known = named.stored->paths;
      if (std::any_of(known.begin(), known.end(), [&](const PathResult& path) { return path.path == name; }))
        continue;
      std::vector<std::string_view> names;
      for (const PathResult& path : known) names.push_back(path.path);
      throw InputError(fmt::format("{} has no path '{}' in {}, it has {}", named.record, name,
                                   named.stored->name, fmt::join(names, ", ")));
    }
  }
}

// A case, and the paths that came with it: a record's give what is stored, and nothing is run.
StoredCase case_of(const NamedProblem& named, const std::vector<std::string>& wanted, int threads) {
  if (!named.stored) return {make_case(named.problem, named.name, threads), {}};
  StoredCase stored = read_stored_case(named.record, *named.stored);
  stored.c.name = named.name;
  std::erase_if(stored.paths, [&](const Path& path) {
    return !wanted.empty() && std::find(wanted.begin(), wanted.end(), path.name) == wanted.end();
  });
  return stored;
}

void run_explain(ExplainArguments& arguments, Context& context) {
  tidy_path_names(arguments.options.paths, false);
  const Gate gate = read_gate(find_gate(arguments.gate));
  const std::vector<NamedProblem> problems =
      collect_inputs(arguments.inputs, arguments.suites, Records::kTaken);
  check_stored_paths(arguments.options.paths, problems);
  refuse_inputs_as_targets({arguments.output, arguments.json}, problems);
  if (!arguments.json.empty()) PendingFile(arguments.json, arguments.overwrite);
  CompareOptions options = arguments.options;
  options.explain = true;
  options.truth = chosen_truth(arguments.truth);
  std::optional<RecordWriter> record;
  if (!arguments.output.empty()) {
    RunInfo info = collect_run_info(context.command_line, options.threads);
    info.emplace_back("truth", name_of(options.truth));
    record.emplace(arguments.output, info, gate, arguments.overwrite);
  }
  options.repeat = 1;
  ProgressLine progress(!arguments.quiet, problems.size());
  std::vector<CaseResult> results;
  nlohmann::json blind = nlohmann::json::array();
  for (std::size_t i = 0; i < problems.size(); ++i) {
    progress.start_case(i);
    progress.update(problems[i].name, "inputs", 0);
    const auto [c, stored] = case_of(problems[i], options.paths, options.threads);
    if (arguments.blind) {
      const std::vector<BlindSpot> spots = blind_spots(c, gate, options.threads);
      progress.clear();
      print_blind_spots(c.name, spots);
      for (auto& spot : json_of(c.name, spots)) blind.push_back(std::move(spot));
      continue;
    }
    const Progress show = [&](std::string_view name, std::string_view stage, double share) {
      progress.update(name, stage, share);
    };
    CaseResult result = problems[i].stored ? compare_case(c, gate, options, stored, show)
                                           : compare_case(c, gate, options, show);
    progress.clear();
    fmt::print("{}", render_findings(result, arguments.verbose));
    std::fflush(stdout);
    if (record) record->add(result, nullptr);
    results.push_back(std::move(result));
  }
  if (record) record->finish();
  if (!arguments.json.empty()) {
    nlohmann::json document = {{"format", "sinkscope-findings"}, {"version", 1}};
    document["findings"] = findings_json(results);
    document["training"] = training_json(results);
    document["stages"] = stages_json(results);
    if (arguments.blind) document["blind"] = blind;
    write_file(arguments.json, document.dump(2) + "\n", arguments.overwrite);
  }
  if (record) fmt::print("record: {}\n", arguments.output);
  context.exit_code = arguments.blind ? ExitCode::kPassed : exit_code_of(results);
}

}  // namespace

void add_explain_command(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("explain", "Name the mistake behind what every path gets wrong");
  auto arguments = std::make_shared<ExplainArguments>();
  command->add_option(
      "INPUT", arguments->inputs,
      "Captures (.safetensors), folders of captures, quoted problem lines, or records (.h5) that "
      "compare --save-tensors wrote");
  command
      ->add_option("--suite", arguments->suites,
                   "A file of problem lines, or the name of a shipped suite (sinkscope list suites)")
      ->allow_extra_args(false);
  command
      ->add_option(
          "--paths", arguments->options.paths,
          "Paths to explain, by commas (default: all; sinkscope list paths; of a record those that it "
          "holds)")
      ->delimiter(',')
      ->allow_extra_args(false);
  add_truth_option(*command, arguments->truth);
  command->add_option("--gate", arguments->gate, "Gate file or the name of a shipped gate")
      ->capture_default_str();
  command->add_option("--json", arguments->json, "Write the findings as JSON here");
  command->add_option("-o,--output", arguments->output, "Write the HDF5 record, findings included, here");
  command->add_flag("--blind", arguments->blind,
                    "List the causes that the inputs could not have shown, instead of explaining");
  command->add_option("--threads", arguments->options.threads, "Threads (0: all)")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  command->add_flag("--overwrite", arguments->overwrite, "Replace output files that exist");
  command->add_flag("-q,--quiet", arguments->quiet, "No progress");
  command->add_flag("-v,--verbose", arguments->verbose,
                    "Where every head's error comes from, its gains and squared gradient norms");
  command->footer(
      "Examples:\n  sinkscope explain datasets/captures/calm_layer1.safetensors --json findings.json\n"
      "  sinkscope explain 'b1 hq8 hkv2 sq300 sk300 d64 bf16 causal w128 seed=7' --paths "
      "fault:window_plus_one:sink_kernel\n"
      "  sinkscope explain report.h5 --paths eager\n"
      "  sinkscope explain --blind 'b1 hq8 hkv8 sq256 sk256 d64 bf16 causal'");
  command->callback([arguments, &context] { run_explain(*arguments, context); });
}

}  // namespace sinkscope::cli
