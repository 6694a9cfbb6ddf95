// SPDX-License-Identifier: Apache-2.0
#include "src/report/training.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

#include "src/record/sidecar.hpp"

namespace sinkscope {
namespace {

constexpr std::size_t kMostHeads = 4;  // with a share of their own, unless all are asked for

std::string percent(double share) {
  return fmt::format("{:.1f} %", std::round(1000 * share) / 10 + 0.0);  // no -0.0
}

std::string shares_line(const Training& training, bool verbose) {
  std::string line = fmt::format("      the {} by cause:", training.layer.change() > 0 ? "excess" : "loss");
  const char* separator = " ";
  for (const CauseShare& of : training.causes) {
    line += fmt::format("{}{} {}", separator, of.cause, percent(of.share));
    separator = ", ";
  }
  line += "; by head:";
  const std::size_t count = verbose ? training.shares.size() : std::min(kMostHeads, training.shares.size());
  separator = " ";
  double others = 0;
  for (std::size_t i = 0; i < training.shares.size(); ++i) {
    const HeadShare& of = training.shares[i];
    if (i >= count) {
      others += of.share;
      continue;
    }
    line += fmt::format("{}{}{} {}", separator, of.of_keys ? "kv " : "", of.head, percent(of.share));
    separator = ", ";
  }
  return line + (count < training.shares.size() ? fmt::format(", others {}\n", percent(others)) : "\n");
}

std::string gain_text(double value) {
  constexpr double kNothing = 1e-12;  // of a gain: rounding of double
  if (std::isnan(value)) return "-";
  return fmt::format("{:.4g}", std::fabs(value) < kNothing ? 0 : value);
}

std::string norm_text(double value) {
  return std::isnan(value) ? "-" : fmt::format("{:.4g}", value);
}

std::string head_lines(const Training& training) {
  std::string lines = fmt::format("      {:<7} {:<8} {:>9} {:>9} {:>10} {:>10} {:>10}\n", "tensor", "head",
                                  "gain", "predicted", "|g|^2", "|g_ref|^2", "|error|^2");
  for (const HeadGradient& g : training.heads) {
    lines += fmt::format("      {:<7} {:<8} {:>9} {:>9} {:>10} {:>10} {:>10}\n", text(g.tensor),
                         fmt::format("{}{}", is_of_keys(g.tensor) ? "kv " : "", g.head), gain_text(g.gain),
                         gain_text(g.predicted_gain), norm_text(g.norm2.got), norm_text(g.norm2.ref),
                         norm_text(g.norm2.error));
  }
  return lines;
}

nlohmann::json norms_json(const Norms& norms) {
  return {{"got", json_of(norms.got)}, {"ref", json_of(norms.ref)}, {"error", json_of(norms.error)}};
}

nlohmann::json path_json(const Training& training) {
  nlohmann::json causes = nlohmann::json::array(), shares = causes, heads = causes;
  for (const CauseShare& of : training.causes)
    causes.push_back({{"cause", of.cause}, {"share", json_of(of.share)}});
  for (const HeadShare& of : training.shares)
    shares.push_back({{"head", of.head}, {"of_keys", of.of_keys}, {"share", json_of(of.share)}});
  for (const HeadGradient& g : training.heads) {
    heads.push_back({{"tensor", text(g.tensor)},
                     {"head", g.head},
                     {"gain", json_of(g.gain)},
                     {"predicted_gain", json_of(g.predicted_gain)},
                     {"norm2", norms_json(g.norm2)}});
  }
  return {{"layer_norm2", norms_json(training.layer)},
          {"sinks_norm2", norms_json(training.sinks)},
          {"changed", training.changed},
          {"sinks_train", training.sinks_train},
          {"share_of_causes", causes},
          {"share_of_heads", shares},
          {"heads", heads},
          {"sentence", training.sentence},
          {"recommendation", training.recommendation}};
}

}  // namespace

std::string render_training(const Training& training, bool verbose) {
  if (!training.given) return "";
  std::string block = fmt::format("    for training: {}\n", training.sentence);
  if (training.changed) block += shares_line(training, verbose);
  block += fmt::format("      to do: {}\n", training.recommendation);
  return verbose ? block + head_lines(training) : block;
}

nlohmann::json training_json(const std::vector<CaseResult>& results) {
  nlohmann::json list = nlohmann::json::array();
  for (const CaseResult& result : results) {
    for (const PathResult& path : result.paths) {
      if (!path.explanation.training.given) continue;
      nlohmann::json of = {
          {"problem", result.name}, {"problem_line", result.problem_line}, {"path", path.path}};
      of.update(path_json(path.explanation.training));
      list.push_back(std::move(of));
    }
  }
  return list;
}

}  // namespace sinkscope
