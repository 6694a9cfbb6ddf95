// SPDX-License-Identifier: Apache-2.0
// Rounding stages, for people and for machines.
#include "src/report/stages.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace sinkscope {
namespace {

std::int64_t percent(double share) {
  return std::llround(100 * share);
}

// "81 % Delta from the rounded out, 14 % dS, 3 % output, 2 % left", the largest first.
std::string shares_text(std::vector<StageShare> stages, double remainder) {
  std::stable_sort(stages.begin(), stages.end(),
                   [](const StageShare& a, const StageShare& b) { return a.share > b.share; });
  std::string text;
  for (const StageShare& one : stages) {
    text += fmt::format("{}{} % {}, ", one.expected ? "about " : "", percent(one.share),
                        stage_info(one.stage).words);
  }
  return text + fmt::format("{} % left", percent(remainder));
}

std::string_view words_of(const BiasSource& source) {
  return source.source == "row_sum" ? "P rounded in PV and not in the row's sum"
         : source.source == "ties"  ? "ties at the row's maximum"
                                    : "the sink's own rounding";
}

// "bias -0.0088: -0.0087 from the sink's own rounding"; where no mechanism is known, the stage that makes most of it.
std::string bias_text(const HeadStages& head) {
  std::string text = fmt::format("bias {:+.2g}", head.bias);
  for (const BiasSource& source : head.bias_sources) {
    text += fmt::format("{} {:+.2g} from {}", &source == &head.bias_sources.front() ? ":" : ",", source.bias,
                        words_of(source));
  }
  if (!head.bias_sources.empty()) return text;
  for (const StageShare& one : head.stages) {
    if (one.bias / head.bias > 0.5)
      return text + fmt::format(": {:+.2g} from {}", one.bias, stage_info(one.stage).words);
  }
  return text + " of unknown source";
}

std::string name_of(const HeadStages& head) {
  const std::string batch = head.batch > 0 ? fmt::format(" batch {}", head.batch) : "";
  return fmt::format("{}{} {} {}", text(head.tensor), batch, is_of_keys(head.tensor) ? "kv head" : "head",
                     head.head);
}

nlohmann::json number(double x) {
  if (std::isfinite(x)) return x;
  return std::isnan(x) ? "nan" : x > 0 ? "inf" : "-inf";
}

}  // namespace

std::string render_stages(const std::vector<HeadStages>& stages, bool verbose) {
  std::string block;
  for (const TensorStages& of : stages_by_tensor(stages)) {
    block += fmt::format("    {} {:<6} {} (z_rms {:.2g})\n", block.empty() ? "rounding:" : "         ",
                         text(of.tensor), shares_text(of.stages, of.remainder), of.z_rms);
    for (const HeadStages& head : stages) {
      if (head.tensor != of.tensor || (!verbose && head.bias_sources.empty())) continue;
      block += fmt::format("                {}:", name_of(head));
      if (verbose)
        block += fmt::format(" {} (z_rms {:.2g})", shares_text(head.stages, head.remainder), head.z_rms);
      if (head.biased) block += fmt::format("{} {}", verbose ? ";" : "", bias_text(head));
      block += "\n";
    }
  }
  return block;
}

nlohmann::json stages_json(const std::vector<CaseResult>& results) {
  nlohmann::json list = nlohmann::json::array();
  for (const CaseResult& result : results) {
    for (const PathResult& path : result.paths) {
      for (const HeadStages& head : path.explanation.stages) {
        nlohmann::json stages = nlohmann::json::array(), sources = nlohmann::json::array();
        for (const StageShare& one : head.stages) {
          nlohmann::json stage = {
              {"stage", one.stage}, {"share", number(one.share)}, {"expected", one.expected}};
          if (!one.expected) stage["bias"] = number(one.bias);
          stages.push_back(std::move(stage));
        }
        for (const BiasSource& source : head.bias_sources)
          sources.push_back({{"source", source.source}, {"bias", number(source.bias)}});
        list.push_back({{"problem", result.name},
                        {"path", path.path},
                        {"tensor", text(head.tensor)},
                        {"batch", head.batch},
                        {"head", head.head},
                        {"z_rms", number(head.z_rms)},
                        {"stages", stages},
                        {"remainder", number(head.remainder)},
                        {"bias", number(head.bias)},
                        {"biased", head.biased},
                        {"bias_sources", sources}});
      }
    }
  }
  return list;
}

}  // namespace sinkscope
