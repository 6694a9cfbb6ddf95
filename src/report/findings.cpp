// SPDX-License-Identifier: Apache-2.0
#include "src/report/findings.hpp"

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "src/record/sidecar.hpp"
#include "src/report/stages.hpp"
#include "src/report/training.hpp"

namespace sinkscope {
namespace {

std::string paragraph(const Finding& finding) {
  if (finding.cause == kNoCause) return "    none: nothing fails\n";
  std::string text = fmt::format("    {}: {}", finding.cause, finding.sentence);
  if (!finding.note.empty()) text += fmt::format(" ({})", finding.note);
  text += fmt::format("\n      {}", scope_text(finding));
  if (finding.cause == kUnknownCause) {
    text += fmt::format("; z_rms up to {:.3g}\n", finding.residual_z);
  } else {
    text += fmt::format("; explains {:.4g} % of the squared error, leaves z_rms {:.3g}\n",
                        100 * finding.share, finding.residual_z);
  }
  if (!finding.equivalent.empty())
    text += fmt::format("      this input cannot tell it from {}\n", fmt::join(finding.equivalent, ", "));
  text += fmt::format("      fix: {}\n", finding.fix);
  if (!finding.evidence.empty()) text += fmt::format("      seen in: {}\n", finding.evidence);
  return text;
}

}  // namespace

std::string render_findings(const CaseResult& result, bool verbose) {
  std::string block = fmt::format("{}  {}\n", result.name, result.problem_line);
  for (const PathResult& path : result.paths) {
    block += fmt::format("  {}", path.path);
    if (path.explanation.findings.empty()) {
      block +=
          fmt::format(": {}: {}\n", text(path.verdicts.empty() ? Verdict::kError : path.verdicts[0].verdict),
                      path.verdicts.empty() ? "no verdict" : path.verdicts[0].reason);
      continue;
    }
    block += "\n";
    for (const Finding& finding : path.explanation.findings) {
      block += paragraph(finding);
      if (finding.cause == kNoCause) break;  // what comes after it is said by the stages
    }
    block += render_stages(path.explanation.stages, verbose);
    block += render_training(path.explanation.training, verbose);
  }
  return block;
}

nlohmann::json findings_json(const std::vector<CaseResult>& results) {
  nlohmann::json list = nlohmann::json::array();
  for (const CaseResult& result : results) {
    for (const PathResult& path : result.paths) {
      for (const Finding& finding : path.explanation.findings) {
        nlohmann::json tensors = nlohmann::json::array();
        for (const TensorName tensor : finding.tensors) tensors.push_back(text(tensor));
        nlohmann::json rows;
        if (finding.first_row >= 0) rows = {finding.first_row, finding.end_row};
        list.push_back({{"problem", result.name},
                        {"problem_line", result.problem_line},
                        {"path", path.path},
                        {"tensors", tensors},
                        {"batches", finding.batches},
                        {"heads", finding.heads},
                        {"all_heads", finding.all_heads},
                        {"heads_of_keys", finding.of_keys},
                        {"documents", finding.documents},
                        {"rows", rows},
                        {"cause", finding.cause},
                        {"equivalent", finding.equivalent},
                        {"residual_z", json_of(finding.residual_z)},
                        {"share", json_of(finding.share)},
                        {"sentence", finding.sentence},
                        {"parameters", finding.note},
                        {"fix", finding.fix}});
      }
    }
  }
  return list;
}

}  // namespace sinkscope
