// SPDX-License-Identifier: Apache-2.0
#include "fmt/format.h"

#include "src/bench/bench.hpp"

namespace sinkscope {
namespace {

using nlohmann::json;

std::string row_of(const json& contestant) {
  return fmt::format("| {} | {} | {:.4g} | {:.3f} x | {:.3f} x |\n", contestant["name"].get<std::string>(),
                     spread_text(contestant["ms"]), contestant["ms"]["mean"].get<double>(),
                     contestant["ratio_of_medians"].get<double>(),
                     contestant["ratio_of_means"].get<double>());
}

std::string of_recording(const json& figures, const std::string& first) {
  const json& recording = figures["recording"];
  const json& error = recording["standard_error"];
  const std::string sure =
      error.is_null() ? "" : fmt::format(" (standard error {:.1f} %)", 100 * error.get<double>());
  return fmt::format(
      "Recording, with the heads observed in {} of {} steps (one in {}), changes the mean step of {} by "
      "{:+.1f} "
      "%{}.\n",
      recording["observed"].get<int>(), figures["rounds"].get<int>(), recording["observe_every"].get<int>(),
      first, 100 * recording["price"].get<double>(), sure);
}

std::string of_cost(const json& cost, const std::string& what, const std::string& first) {
  if (cost["ms"].is_null())
    return fmt::format("{} has no time: {}.\n", what, cost["unavailable"].get<std::string>());
  return fmt::format("{} takes {:.4g} ms, {:.2f} median steps of {}.\n", what,
                     cost["ms"]["median"].get<double>(), cost["steps"].get<double>(), first);
}

}  // namespace

std::string training_table(const json& figures) {
  const json& contestants = figures["contestants"];
  const std::string first = contestants[0]["name"];
  std::string text = fmt::format("## {} on {} ({}), {} rounds\n\n", figures["scenario"].get<std::string>(),
                                 figures["device"].get<std::string>(), figures["backend"].get<std::string>(),
                                 figures["rounds"].get<int>());
  text += fmt::format("{:.2f} million parameters, {} tokens a step.\n\n",
                      figures["parameters"].get<double>() / 1e6,
                      contestants[0]["tokens_per_step"].get<std::int64_t>());
  text += fmt::format(
      "| | ms a step, median (quartiles) | mean | medians against {0} | means against {0} |\n"
      "|---|---|---|---|---|\n",
      first);
  for (const json& contestant : contestants) text += row_of(contestant);
  const std::string checkpoint =
      fmt::format("A checkpoint of {:.1f} MB", figures["checkpoint"]["bytes"].get<double>() / 1e6);
  return text + "\n" + of_recording(figures, first) +
         of_cost(figures["counterfactual"], "A sampled step's counterfactual", first) +
         of_cost(figures["checkpoint"], checkpoint, first);
}

}  // namespace sinkscope
