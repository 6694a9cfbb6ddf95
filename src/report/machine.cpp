// SPDX-License-Identifier: Apache-2.0
#include "src/report/machine.hpp"

#include "fmt/format.h"
#include "nlohmann/json.hpp"

#include "src/record/sidecar.hpp"
#include "src/report/findings.hpp"
#include "src/report/stages.hpp"
#include "src/report/training.hpp"

namespace sinkscope {
namespace {

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\n':
        out += "&#10;";
        break;
      default:
        out += (static_cast<unsigned char>(c) < ' ' && c != '\t') ? '?' : c;
    }
  }
  return out;
}

std::string message_of(const VerdictRow& row) {
  if (!row.reason.empty()) return row.reason;
  return fmt::format("{}: {} {:.4g}, limit {:.4g}", place_of(row), row.metric, row.value, row.limit);
}

// What stands inside a <testcase>: nothing when it passed; what is only observed never fails a build.
std::string outcome_of(const VerdictRow& row) {
  const std::string message = escaped(message_of(row));
  switch (row.verdict) {
    case Verdict::kPassed:
      return {};
    case Verdict::kSkipped:
      return fmt::format("<skipped message=\"{}\"/>", message);
    case Verdict::kError:
      if (row.judged) return fmt::format("<error message=\"{}\">{}</error>", message, escaped(row.repro));
      break;
    default:
      if (row.judged) {
        return fmt::format("<failure type=\"{}\" message=\"{}\">{}</failure>", text(row.verdict), message,
                           escaped(row.repro));
      }
  }
  return fmt::format("<skipped message=\"{} (observed): {}\"/>", text(row.verdict), message);
}

}  // namespace

std::string to_json(const std::vector<CaseResult>& results, const RunInfo& info, const Gate& gate) {
  nlohmann::json document;
  document["format"] = "sinkscope-verdicts";
  document["version"] = 1;
  for (const auto& [name, value] : info) document["run"][name] = value;
  document["gate"] = {{"name", gate.name}, {"toml", to_toml(gate)}};
  document["cases"] = nlohmann::json::array();
  std::vector<VerdictRow> all;
  for (const CaseResult& result : results) {
    nlohmann::json paths = nlohmann::json::array();
    for (const PathResult& path : result.paths) {
      nlohmann::json verdicts = nlohmann::json::array();
      for (const VerdictRow& row : path.verdicts) {
        verdicts.push_back(json_of(row));
        all.push_back(row);
      }
      paths.push_back({{"path", path.path},
                       {"backend", path.backend},
                       {"judged", path.judged},
                       {"sentences", path.sentences},
                       {"verdicts", verdicts}});
    }
    document["cases"].push_back({{"name", result.name},
                                 {"problem", result.problem_line},
                                 {"inputs_sha256", result.inputs_sha256},
                                 {"paths", paths}});
  }
  const nlohmann::json findings = findings_json(results);
  if (!findings.empty()) document["findings"] = findings;
  const nlohmann::json training = training_json(results);
  if (!training.empty()) document["training"] = training;
  const nlohmann::json stages = stages_json(results);
  if (!stages.empty()) document["stages"] = stages;
  document["exit_code"] = static_cast<int>(exit_code(all));
  return document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string to_junit(const std::vector<CaseResult>& results) {
  std::string suites;
  for (const CaseResult& result : results) {
    std::string cases;
    int tests = 0, failures = 0, errors = 0, skipped = 0;
    for (const PathResult& path : result.paths) {
      for (const VerdictRow& row : path.verdicts) {
        const std::string outcome = outcome_of(row);
        ++tests;
        failures += outcome.starts_with("<failure") ? 1 : 0;
        errors += outcome.starts_with("<error") ? 1 : 0;
        skipped += outcome.starts_with("<skipped") ? 1 : 0;
        cases +=
            fmt::format("    <testcase classname=\"{}.{}\" name=\"{}\">{}</testcase>\n", escaped(result.name),
                        escaped(path.path), row.tensor.empty() ? "path" : row.tensor, outcome);
      }
    }
    suites += fmt::format(
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">\n{}  "
        "</testsuite>\n",
        escaped(result.name + ": " + result.problem_line), tests, failures, errors, skipped, cases);
  }
  return fmt::format("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n{}</testsuites>\n", suites);
}

}  // namespace sinkscope
