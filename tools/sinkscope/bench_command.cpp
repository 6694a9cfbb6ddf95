// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "fmt/format.h"

#include "src/bench/bench.hpp"
#include "src/core/file.hpp"
#include "tools/sinkscope/commands.hpp"
#include "tools/sinkscope/progress.hpp"

namespace sinkscope::cli {

void add_bench_command(CLI::App& app, Context& context) {
  struct Arguments {
    std::string what, json;
    BenchOptions options;
    bool overwrite = false;
  };
  CLI::App* command =
      app.add_subcommand("bench", "Measure speed: the truth, its memory, or the kernel's CPU backend");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("WHAT", arguments->what, "reference, memory, truth or kernel")
      ->required()
      ->check(CLI::IsMember({"reference", "memory", "truth", "kernel"}));
  command->add_option("--json", arguments->json, "Write the figures here too");
  command->add_option("--rounds", arguments->options.rounds, "Timed rounds")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command->add_option("--threads", arguments->options.threads, "Threads (0: all)")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  command->add_flag("--overwrite", arguments->overwrite, "Replace the file if it exists");
  command->footer("Example:\n  sinkscope bench reference --json reference.json");
  command->callback([arguments, &context] {
    if (!arguments->json.empty())
      PendingFile(arguments->json, arguments->overwrite);  // refused before the work
    ProgressLine line(true, 1);
    const auto progress = [&](std::string_view what, int round) {
      line.update(what, fmt::format("round {}", round),
                  static_cast<double>(round) / (arguments->options.rounds + 1));
    };
    nlohmann::json figures = arguments->what == "kernel"   ? bench_kernel(arguments->options, progress)
                             : arguments->what == "truth"  ? bench_truth_cuda(arguments->options, progress)
                             : arguments->what == "memory" ? bench_reference_memory(arguments->options)
                                                           : bench_reference(arguments->options, progress);
    line.clear();
    figures["command"] = context.command_line;
    const std::string text = figures.dump(2) + "\n";
    fmt::print("{}", text);
    if (!arguments->json.empty()) write_file(arguments->json, text, arguments->overwrite);
  });
}

}  // namespace sinkscope::cli
