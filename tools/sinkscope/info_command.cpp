// SPDX-License-Identifier: Apache-2.0
#include "fmt/format.h"

#include "src/compare/truth_kind.hpp"
#include "src/paths/sink_kernel.hpp"
#include "src/paths/table.hpp"
#include "src/record/run_info.hpp"
#include "src/torch/module.hpp"
#include "tools/sinkscope/commands.hpp"

namespace sinkscope::cli {
namespace {

void print_info() {
  const TorchModule& torch = torch_module();
  for (const auto& [name, value] : collect_run_info("", 0)) {
    if (name != "command_line" && name != "utc") fmt::print("{:<12} {}\n", name, value);
  }
  fmt::print("{:<12} {}\n", "kernel", sink_kernel_backends());
  const std::string no_cuda_truth = unavailable(TruthKind::kCuda);
  fmt::print("{:<12} eigen, cuda ({})\n", "truth", no_cuda_truth.empty() ? "available" : no_cuda_truth);
  fmt::print("\n{:<28} {:<28} {}\n", "path", "needs", "here");
  for (const Path& path : all_paths()) {
    const bool missing = path.name != "sink_kernel" && !torch.unavailable.empty();
    fmt::print("{:<28} {:<28} {}\n", path.name, path.backends, missing ? torch.unavailable : "available");
  }
}

}  // namespace

void add_info_command(CLI::App& app, Context&) {
  CLI::App* command = app.add_subcommand("info", "Machine, libraries, and what each path needs");
  command->footer("Example:\n  sinkscope info");
  command->callback(print_info);
}

}  // namespace sinkscope::cli
