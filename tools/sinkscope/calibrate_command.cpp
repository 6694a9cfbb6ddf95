// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "fmt/format.h"

#include "src/calibrate/calibrate.hpp"
#include "src/capture/capture.hpp"
#include "src/core/file.hpp"
#include "tools/sinkscope/commands.hpp"
#include "tools/sinkscope/data_files.hpp"
#include "tools/sinkscope/progress.hpp"

namespace sinkscope::cli {

void add_calibrate_command(CLI::App& app, Context& context) {
  struct Arguments {
    std::string gate = "default", captures, output;
    CalibrateOptions options;
    bool overwrite = false;
  };
  CLI::App* command =
      app.add_subcommand("calibrate", "Measure healthy paths and planted faults against a gate, as a table");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("--gate", arguments->gate, "Gate file or the name of a shipped gate")
      ->capture_default_str();
  command->add_option("--captures", arguments->captures, "A folder of captures to take part");
  command->add_option("--seeds", arguments->options.seeds, "Seeds per fill and format")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  command->add_option("--paths", arguments->options.paths, "Healthy paths, by commas")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--threads", arguments->options.threads, "Threads (0: all)")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  command->add_option("-o,--output", arguments->output, "Write the Markdown table here");
  command->add_flag("--overwrite", arguments->overwrite, "Replace the file if it exists");
  command->footer(
      "Example:\n  sinkscope calibrate --captures datasets/captures -o reports/gates/calibration.md "
      "--overwrite");
  command->callback([arguments, &context] {
    const Gate gate = read_gate(find_gate(arguments->gate));
    if (!arguments->captures.empty()) arguments->options.captures = captures_at(arguments->captures);
    if (!arguments->output.empty())
      PendingFile(arguments->output, arguments->overwrite);  // refused before the work
    ProgressLine line(true, 1);
    const Calibration calibration =
        calibrate(gate, arguments->options, [&](std::string_view name, std::string_view stage, double share) {
          line.update(name, stage, share);
        });
    line.clear();
    const std::string text = to_markdown(calibration, gate, arguments->options, context.command_line);
    fmt::print("{}", text);
    if (!arguments->output.empty()) write_file(arguments->output, text, arguments->overwrite);
    context.exit_code = holds(calibration, gate) ? ExitCode::kPassed : ExitCode::kFailed;
  });
}

}  // namespace sinkscope::cli
