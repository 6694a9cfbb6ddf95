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

}  // namespace

std::string to_markdown(const Calibration& calibration, const Gate& gate, const CalibrateOptions& options,
                        const std::string& command) {
  std::string text = fmt::format(
      "# Calibration of the gate `{}`\n\n    {}\n\n{} cases: {} seeds of every fill in every format over "
      "eight shapes, and {} captures; paths {}.\n\n",
      gate.name, command, calibration.cases, options.seeds, options.captures.size(),
      fmt::join(options.paths, ", "));
  text +=
      "## Healthy paths\nThe worst value of any head; it must stay at or under 0.7 of the limit.\n\n"
      "| format | statistic | limit | worst | worst/limit | where |\n|---|---|---|---|---|---|\n";
  for (const auto& [dtype, extremes] : calibration.healthy) {
    for (std::size_t i = 0; i < extremes.size(); ++i) {
      const double limit = limit_of(gate.formats.at(dtype), i);
      text += fmt::format("| {} | {} | {} | {:.3g} | {:.2f} | {} on `{}` |\n", name_of(dtype), kLimitNames[i],
                          limit, extremes[i].value, extremes[i].value / limit, extremes[i].path,
                          extremes[i].problem_line);
    }
  }
  text += "\nTensors that failed the test of the signed bias:";
  for (const auto& [dtype, tensors] : calibration.tensors) {
    const auto found = calibration.healthy_bias_failures.find(dtype);
    text += fmt::format(" {} {} of {};", name_of(dtype),
                        found == calibration.healthy_bias_failures.end() ? 0 : found->second, tensors);
  }
  text +=
      "\n\n## Planted faults\nEach wraps `sink_kernel`; the figure of a case is its worst value over its "
      "limit, of all tensors. A case is "
      "missed when that stays at or under 1: there the fault is too small to be told from rounding.\n\n"
      "| format | fault | cases | caught | median | largest |\n|---|---|---|---|---|---|\n";
  for (const auto& [dtype, faults] : calibration.faults) {
    for (const auto& [name, margin] : faults) {
      std::vector<double> ratios = margin.ratios;
      std::sort(ratios.begin(), ratios.end());
      const auto caught = std::count_if(ratios.begin(), ratios.end(), [](double r) { return r > 1; });
      text += fmt::format("| {} | {} | {} | {} | {} | {} |\n", name_of(dtype), name, ratios.size(), caught,
                          ratio(ratios[ratios.size() / 2]), ratio(ratios.back()));
    }
  }
  return text;
}

}  // namespace sinkscope
