// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <memory>

#include "fmt/format.h"

#include "src/capture/capture.hpp"
#include "tools/sinkscope/commands.hpp"

namespace sinkscope::cli {

void add_generate_command(CLI::App& app, Context&) {
  struct Arguments {
    std::string line, output;
    int threads = 0;
    bool overwrite = false;
  };
  CLI::App* command = app.add_subcommand("generate", "Write the inputs of a problem line as a capture");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("LINE", arguments->line, "A quoted problem line")->required();
  command->add_option("-o,--output", arguments->output, "The capture to write (.safetensors)")->required();
  command->add_option("--threads", arguments->threads, "Threads (0: all)")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  command->add_flag("--overwrite", arguments->overwrite, "Replace the file if it exists");
  command->footer(
      "Example:\n  sinkscope generate 'b1 hq8 hkv2 sq512 sk512 d64 bf16 causal w128 seed=7' -o "
      "case.safetensors");
  command->callback([arguments] {
    const Problem problem = parse_problem(arguments->line);
    Case c = make_case(problem, std::filesystem::path(arguments->output).stem().string(), arguments->threads);
    c.metadata["source"] = "sinkscope generate " + to_string(problem);
    save_capture(arguments->output, c, arguments->overwrite);
    fmt::print("{}: {}\n", arguments->output, to_string(problem));
  });
}

}  // namespace sinkscope::cli
