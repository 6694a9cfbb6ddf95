// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <exception>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "sinkscope_version.hpp"
#include "src/core/file.hpp"
#include "tools/sinkscope/commands.hpp"

namespace {

using sinkscope::ExitCode;

std::string joined(int count, char** arguments) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    const std::string_view argument = arguments[i];
    const bool plain = argument.find_first_of(" '\"\\$*?") == std::string_view::npos && !argument.empty();
    text +=
        fmt::format("{}{}", i == 0 ? "" : " ", plain ? std::string(argument) : fmt::format("'{}'", argument));
  }
  return text;
}

int complain(const std::exception& error, ExitCode code) {
  fmt::print(stderr, "sinkscope: {}\n", error.what());
  return static_cast<int>(code);
}

// CLI11 would only say that a subcommand is missing.
void check_command_name(const CLI::App& app, int count, char** arguments) {
  if (count < 2 || arguments[1][0] == '-') return;
  std::vector<std::string> known;
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_name() == arguments[1]) return;
    known.push_back(command->get_name());
  }
  throw sinkscope::InputError(
      fmt::format("command '{}' is not known, wanted one of {}", arguments[1], fmt::join(known, ", ")));
}

}  // namespace

int main(int count, char** arguments) {
  sinkscope::install_interrupt_handler();
  CLI::App app(
      "Numerical verification of attention with learnable sinks: every head of every output and gradient, "
      "against a double-precision truth.");
  app.name("sinkscope");
  app.set_version_flag("--version",
                       fmt::format("sinkscope {} ({})", sinkscope::kVersion, sinkscope::kCommit));
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.footer(
      "Example:\n  sinkscope compare datasets/captures/calm_layer1.safetensors -o calm.h5\n"
      "Exit codes: 0 passed, 1 gate failed, 2 usage or input, 3 environment, 4 inconclusive, 5 internal, 130 "
      "interrupted.");
  sinkscope::cli::Context context;
  context.command_line = joined(count, arguments);
  using namespace sinkscope::cli;
  for (const auto add :
       {add_compare_command, add_explain_command, add_gate_command, add_diff_command, add_list_command,
        add_info_command, add_generate_command, add_bench_command, add_calibrate_command, add_faults_command,
        add_spike_command, add_document_commands}) {
    add(app, context);
  }
  try {
    check_command_name(app, count, arguments);
    app.parse(count, arguments);
    return static_cast<int>(context.exit_code);
  } catch (const CLI::Success& wanted) {
    return app.exit(wanted);  // --help and --version
  } catch (const CLI::ParseError& error) {
    complain(error, ExitCode::kUsage);
    fmt::print(stderr, "Run sinkscope --help, or sinkscope COMMAND --help.\n");
    return static_cast<int>(ExitCode::kUsage);
  } catch (const sinkscope::InputError& error) {
    return complain(error, ExitCode::kUsage);
  } catch (const sinkscope::EnvironmentError& error) {
    return complain(error, ExitCode::kEnvironment);
  } catch (const std::bad_alloc&) {
    return complain(std::runtime_error("out of memory: a smaller problem, or one path at a time, needs less"),
                    ExitCode::kEnvironment);
  } catch (const std::exception& error) {
    return complain(error, ExitCode::kInternal);
  }
}
