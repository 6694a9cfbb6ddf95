// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/diff/diff.hpp"
#include "src/explain/cause.hpp"
#include "src/explain/stages.hpp"
#include "src/faults/fault.hpp"
#include "src/gate/gate.hpp"
#include "src/paths/table.hpp"
#include "src/problem/problem.hpp"
#include "tools/sinkscope/commands.hpp"
#include "tools/sinkscope/data_files.hpp"

namespace sinkscope::cli {
namespace {

// "judged", "observed", or the backends on which the gate judges the path.
std::string role_of(const Gate& gate, const std::string& path) {
  if (is_judged(gate, path)) return "judged";
  for (const std::string& name : gate.judged) {
    if (name.starts_with(path + ":")) return "judged on " + name.substr(path.size() + 1);
  }
  return "observed";
}

void list_paths() {
  constexpr std::string_view kLine = "{:<27} {:<15} {}\n";
  const Gate gate = read_gate(find_gate("default"));
  for (const Path& path : all_paths()) fmt::print(kLine, path.name, role_of(gate, path.name), path.summary);
  fmt::print(kLine, "recorded.NAME", "judged", "outputs that a capture brings (observed where NAME is)");
  fmt::print(kLine, "fault:NAME:PATH", "as PATH", "a known mistake around a path (sinkscope list faults)");
  fmt::print(kLine, "fault:NAME@KV:PATH", "as PATH", "the mistake in the group of key/value head KV alone");
}

void list_suites() {
  for (const std::string& name : data_file_names("datasets/suites", ".txt")) {
    fmt::print("{:<12} {} problems\n", name, read_suite(find_suite(name)).size());
  }
}

void list_metrics() {
  for (const MetricInfo& metric : all_metrics())
    fmt::print("{:<20} {:<9} {}\n", metric.name, metric.unit, metric.meaning);
}

void list_gates() {
  for (const std::string& name : data_file_names("reports/gates", ".toml")) {
    const Gate gate = read_gate(find_gate(name));
    constexpr std::string_view kLine = "{:<12} {:<6} {:>6} {:>6} {:>6} {:>7} {:>7} {:>10} {:>10}\n";
    fmt::print(kLine, name, "", "z_rms", "z_row", "z_max", "dsinks", "bias_z", "lse z_rms", "lse z_max");
    for (const auto& [dtype, limits] : gate.formats) {
      fmt::print(kLine, "", name_of(dtype), limits.tensors.z_rms, limits.tensors.z_row, limits.tensors.z_max,
                 limits.dsinks, limits.bias_z, limits.lse.z_rms, limits.lse.z_max);
    }
    fmt::print("{:<12} bias_z where significant at {}; judged: {}\n", "", gate.bias_significance,
               fmt::join(gate.judged, ", "));
  }
}

void list_faults() {
  for (const Fault& fault : all_faults()) fmt::print("{:<17} {}\n", fault.name, fault.summary);
  fmt::print(
      "\n--paths fault:NAME:PATH plants one, fault:NAME@KV:PATH in the group of key/value head KV alone.\n");
}

void list_causes() {
  for (const std::vector<Cause>* causes : {&all_causes(), &fact_causes()}) {
    for (const Cause& cause : *causes) fmt::print("{:<18} {}\n", cause.id, cause.sentence);
  }
  for (const StageInfo& stage : all_stages()) fmt::print("rounding:{:<14} {}\n", stage.id, stage.sentence);
}

void list_fills() {
  for (const Fill fill : all_fills()) fmt::print("{}\n", name_of(fill));
}

}  // namespace

void add_list_command(CLI::App& app, Context&) {
  CLI::App* command =
      app.add_subcommand("list", "List paths, suites, metrics, gates, faults, causes or fills");
  auto what = std::make_shared<std::string>();
  command->add_option("WHAT", *what, "paths, suites, metrics, gates, faults, causes or fills")
      ->required()
      ->check(CLI::IsMember({"paths", "suites", "metrics", "gates", "faults", "causes", "fills"}));
  command->footer("Example:\n  sinkscope list paths");
  command->callback([what] {
    if (*what == "paths") list_paths();
    if (*what == "suites") list_suites();
    if (*what == "metrics") list_metrics();
    if (*what == "gates") list_gates();
    if (*what == "faults") list_faults();
    if (*what == "causes") list_causes();
    if (*what == "fills") list_fills();
  });
}

}  // namespace sinkscope::cli
