// SPDX-License-Identifier: Apache-2.0
// The commands. Each adds itself to the application: its options, its help, and what it does, which sets
// `exit_code`.
#pragma once

#include "CLI/CLI.hpp"

#include "src/core/error.hpp"

namespace sinkscope::cli {

// What all commands share.
struct Context {
  std::string command_line;
  ExitCode exit_code = ExitCode::kPassed;
};

void add_compare_command(CLI::App& app, Context& context);
void add_explain_command(CLI::App& app, Context& context);
void add_gate_command(CLI::App& app, Context& context);
void add_diff_command(CLI::App& app, Context& context);
void add_list_command(CLI::App& app, Context& context);
void add_info_command(CLI::App& app, Context& context);
void add_generate_command(CLI::App& app, Context& context);
void add_bench_command(CLI::App& app, Context& context);
void add_calibrate_command(CLI::App& app, Context& context);
void add_faults_command(CLI::App& app, Context& context);
void add_spike_command(CLI::App& app, Context& context);
void add_document_commands(CLI::App& app, Context& context);

}  // namespace sinkscope::cli
