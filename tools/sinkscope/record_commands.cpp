// SPDX-License-Identifier: Apache-2.0
// Commands on records: `gate` judges one again, `diff` compares two.
#include <algorithm>
#include <memory>

#include "fmt/format.h"

#include "src/compare/compare.hpp"
#include "src/compare/sentences.hpp"
#include "src/core/file.hpp"
#include "src/record/compare_records.hpp"
#include "src/report/machine.hpp"
#include "src/report/terminal.hpp"
#include "tools/sinkscope/commands.hpp"
#include "tools/sinkscope/compare_inputs.hpp"
#include "tools/sinkscope/data_files.hpp"
#include "tools/sinkscope/progress.hpp"

namespace sinkscope::cli {
namespace {

struct GateArguments {
  std::string record, gate, json, junit;
  std::string colour = "auto";
  std::vector<std::string> judged;
  bool overwrite = false, quiet = false, verbose = false;
};

void run_gate(GateArguments& arguments, Context& context) {
  tidy_path_names(arguments.judged, true);
  Record record = read_record(arguments.record);
  Gate gate = arguments.gate.empty() ? parse_gate(record.gate_toml, record.attributes["gate_name"])
                                     : read_gate(find_gate(arguments.gate));
  if (!arguments.judged.empty()) judge_only(gate, arguments.judged);
  const TerminalStyle style = {wants_colour(arguments.colour), arguments.verbose, arguments.quiet};
  std::vector<VerdictRow> rows;
  for (CaseResult& result : record.cases) {
    rejudge(result, gate);
    for (PathResult& path : result.paths) {
      path.sentences = describe(path, result.facts, result.shape);
      rows.insert(rows.end(), path.verdicts.begin(), path.verdicts.end());
    }
    fmt::print("{}", render_case(result, style));
  }
  const RunInfo info = {record.attributes.begin(), record.attributes.end()};
  if (!arguments.json.empty())
    write_file(arguments.json, to_json(record.cases, info, gate), arguments.overwrite);
  if (!arguments.junit.empty()) write_file(arguments.junit, to_junit(record.cases), arguments.overwrite);
  fmt::print("{}", render_summary(rows, style));
  context.exit_code = exit_code(rows);
}

struct DiffArguments {
  std::string before, after;
  std::string colour = "auto";
  double factor = 1.25;
  double floor = 0.5;
  bool quiet = false;
};

void run_diff(const DiffArguments& arguments, Context& context) {
  const std::vector<Change> changes = compare_records(
      read_record(arguments.before), read_record(arguments.after), arguments.factor, arguments.floor);
  fmt::print("{}", render_changes(changes, {wants_colour(arguments.colour), false, arguments.quiet}));
  const bool worse = std::any_of(changes.begin(), changes.end(), [](const Change& change) {
    return change.kind == ChangeKind::kWorse || change.kind == ChangeKind::kInputsDiffer;
  });
  context.exit_code = worse ? ExitCode::kFailed : ExitCode::kPassed;
}

}  // namespace

void add_gate_command(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("gate", "Judge a record again, without computing anything");
  auto arguments = std::make_shared<GateArguments>();
  command->add_option("RECORD", arguments->record, "An HDF5 record")->required();
  command->add_option("--gate", arguments->gate,
                      "Gate file or the name of a shipped gate (default: the record's own)");
  command
      ->add_option("--judge", arguments->judged,
                   "Judge exactly these paths, by commas; all others are observed")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--json", arguments->json, "Write verdicts as JSON here");
  command->add_option("--junit", arguments->junit, "Write verdicts as JUnit XML here");
  command->add_flag("--overwrite", arguments->overwrite, "Replace output files that exist");
  command->add_flag("-q,--quiet", arguments->quiet, "Failures and the last line only");
  command->add_flag("-v,--verbose", arguments->verbose, "Every head of every tensor")->excludes("--quiet");
  command->add_option("--color", arguments->colour, "auto, always or never")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "always", "never"}));
  command->footer("Example:\n  sinkscope gate calm.h5 --gate reports/gates/default.toml");
  command->callback([arguments, &context] { run_gate(*arguments, context); });
}

void add_diff_command(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("diff", "Say what got worse between two records");
  auto arguments = std::make_shared<DiffArguments>();
  command->add_option("BEFORE", arguments->before, "The earlier record")->required();
  command->add_option("AFTER", arguments->after, "The later record")->required();
  command
      ->add_option("--factor", arguments->factor,
                   "A head is worse when its error grew by more than this factor")
      ->capture_default_str()
      ->check(CLI::Range(1.0, 1e6));
  command->add_option("--floor", arguments->floor, "and is over this share of its limit")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6));
  command->add_flag("-q,--quiet", arguments->quiet, "Only what got worse");
  command->add_option("--color", arguments->colour, "auto, always or never")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "always", "never"}));
  command->footer("Example:\n  sinkscope diff before.h5 after.h5");
  command->callback([arguments, &context] { run_diff(*arguments, context); });
}

}  // namespace sinkscope::cli
