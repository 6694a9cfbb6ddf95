// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/calibrate/calibrate.hpp"

namespace sinkscope {
namespace {

std::string ratio(double value) {
  return std::isinf(value) ? "inf" : fmt::format("{:.3g}", value);
}

std::string healthy_table(const std::string& name, const HealthyPath& path, const Gate& gate) {
  std::string text = fmt::format(
      "\n### {} ({}, {})\n| format | statistic | limit | worst | worst/limit | where "
      "|\n|---|---|---|---|---|---|\n",
      name, path.backend, path.judged ? "judged" : "observed");
  for (const auto& [dtype, worst] : path.worst) {
    for (std::size_t i = 0; i < worst.size(); ++i) {
      const double limit = limit_of(gate, dtype, i);
      const std::string where = worst[i].tensor.empty()
                                    ? "nowhere significant"
                                    : fmt::format("{} of `{}`", worst[i].tensor, worst[i].problem_line);
      text += fmt::format("| {} | {} | {} | {:.3g} | {:.2f} | {} |\n", name_of(dtype), kLimitNames[i], limit,
                          worst[i].value, worst[i].value / limit, where);
    }
  }
  return text;
}

}  // namespace

std::string to_markdown(const Calibration& calibration, const Gate& gate, const CalibrateOptions& options,
                        const std::string& command) {
  std::string text = fmt::format(
      "# Calibration of the gate `{}`\n\n    {}\n\n{} cases: {} seeds of every fill in every format over "
      "eight shapes, and {} captures; paths {}.\n\n",
      gate.name, command, calibration.cases, options.seeds, options.captures.size(),
      fmt::join(options.paths, ", "));
  text +=
      "## Healthy paths\nThe worst value of any head. Judged paths must stay at or under 0.7 of the limit.\n";
  for (const auto& [name, path] : calibration.healthy) text += healthy_table(name, path, gate);
  text +=
      "\n## Planted faults\nEach wraps `sink_kernel`; the figure of a case is its worst value over its "
      "limit, of all tensors. A case is "
      "missed when that stays at or under 1: there the fault is too small to be told from rounding.\n\n"
      "| format | fault | cases | caught | least | median | largest |\n|---|---|---|---|---|---|---|\n";
  for (const auto& [dtype, faults] : calibration.faults) {
    for (auto [name, ratios] : faults) {
      std::sort(ratios.begin(), ratios.end());
      const auto caught = std::count_if(ratios.begin(), ratios.end(), [](double r) { return r > 1; });
      text +=
          fmt::format("| {} | {} | {} | {} | {} | {} | {} |\n", name_of(dtype), name, ratios.size(), caught,
                      ratio(ratios.front()), ratio(ratios[ratios.size() / 2]), ratio(ratios.back()));
    }
  }
  return text;
}

}  // namespace sinkscope
