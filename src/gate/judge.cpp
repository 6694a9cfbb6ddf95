// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "fmt/format.h"

#include "src/gate/gate.hpp"
#include "src/gate/student.hpp"

namespace sinkscope {
namespace {

constexpr std::array<std::string_view, 6> kVerdictNames = {"passed",       "failed",  "mistrusted",
                                                           "inconclusive", "skipped", "error"};
constexpr double kBiasDegrees = 15;
constexpr std::string_view kRecordedPrefix = "recorded.";
constexpr std::string_view kFaultPrefix = "fault:";

// One check of one head: passed when value <= limit, so that NaN fails.
struct Check {
  std::string_view metric;
  double value;
  double limit;
  Position at;

  bool passed() const { return value <= limit; }
  // How near to the limit, or how far over it; NaN is beyond everything.
  double severity() const {
    const double ratio = limit > 0 ? value / limit : value > 0 ? std::numeric_limits<double>::infinity() : 0;
    return passed()            ? ratio
           : std::isnan(ratio) ? std::numeric_limits<double>::infinity()
                               : std::max(ratio, 1.0);
  }
};

std::vector<Check> checks_of(const Gate& gate, DType dtype, const TensorMetrics& metrics, std::size_t at) {
  const HeadMetrics& head = metrics.heads[at];
  const FormatLimits& format = gate.formats.at(dtype);
  std::vector<Check> checks;
  if (metrics.tensor == TensorName::kDsinks) {
    checks.push_back({"z_max", head.z_max, format.dsinks, {}});
  } else {
    const Limits& limits = metrics.tensor == TensorName::kLse ? format.lse : format.tensors;
    checks.push_back({"z_rms", head.z_rms, z_rms_limit(limits, metrics.rows_of(at)), {}});
    checks.push_back({"z_row", head.z_row, limits.z_row, {head.z_row_at, -1}});
    checks.push_back({"z_max", head.z_max, limits.z_max, head.z_max_at});
  }
  checks.push_back({"nonfinite", static_cast<double>(head.nonfinite_mismatch), 0, head.nonfinite_at});
  // The bias is for what each element alone hides: where one of them fails, that says more.
  const bool all_passed =
      std::all_of(checks.begin(), checks.end(), [](const Check& c) { return c.passed(); });
  if (all_passed && bias_is_significant(gate, metrics, head))
    checks.push_back({"bias_z", head.bias_z, format.bias_z, {}});
  if (gate.repeatable) checks.push_back({"repeatable", head.repeatable ? 0.0 : 1.0, 0, {}});
  return checks;
}

bool contains(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Is `path` among `names`, alone or as PATH:BACKEND with the start of its backend?
bool is_listed(const std::vector<std::string>& names, std::string_view path, std::string_view backend) {
  return std::any_of(names.begin(), names.end(), [&](std::string_view name) {
    if (!name.starts_with(path)) return false;
    const std::string_view rest = name.substr(path.size());
    return rest.empty() || (rest.starts_with(':') && !backend.empty() && backend.starts_with(rest.substr(1)));
  });
}

}  // namespace

double z_rms_limit(const Limits& limits, std::int64_t rows) {
  return limits.z_rms * (1 + 2 / std::sqrt(2 * static_cast<double>(std::max<std::int64_t>(rows, 1))));
}

bool bias_is_significant(const Gate& gate, const TensorMetrics& metrics, const HeadMetrics& head) {
  if (metrics.tensor == TensorName::kLse) return false;
  const double chance =
      student_two_sided(head.bias_t, kBiasDegrees) * static_cast<double>(metrics.heads.size());
  return !(chance >= gate.bias_significance);
}

std::string_view text(Verdict verdict) {
  return kVerdictNames[static_cast<std::size_t>(verdict)];
}

Verdict verdict_from_text(std::string_view name) {
  const auto* const found = std::find(kVerdictNames.begin(), kVerdictNames.end(), name);
  if (found == kVerdictNames.end()) throw InputError(fmt::format("'{}' is not a verdict", name));
  return static_cast<Verdict>(found - kVerdictNames.begin());
}

std::string place_of(const VerdictRow& row) {
  const bool of_keys = row.tensor == text(TensorName::kDk) || row.tensor == text(TensorName::kDv);
  return fmt::format("batch {} {}head {}{}", row.batch, of_keys ? "kv " : "", row.head,
                     row.row >= 0 ? fmt::format(" row {}", row.row) : "");
}

std::vector<bool> failed_heads(const Gate& gate, DType dtype, const TensorMetrics& metrics) {
  std::vector<bool> failed;
  for (std::size_t head = 0; head < metrics.heads.size(); ++head) {
    const std::vector<Check> checks = checks_of(gate, dtype, metrics, head);
    failed.push_back(!std::all_of(checks.begin(), checks.end(), [](const Check& c) { return c.passed(); }));
  }
  return failed;
}

VerdictRow judge(const Gate& gate, DType dtype, const TensorMetrics& metrics) {
  VerdictRow row;
  row.tensor = text(metrics.tensor);
  double worst = -1;
  bool could_fail = false;
  for (std::size_t head = 0; head < metrics.heads.size(); ++head) {
    bool failed = false;
    for (const Check& check : checks_of(gate, dtype, metrics, head)) {
      failed = failed || !check.passed();
      const double severity = check.severity();
      if (!(severity > worst)) continue;
      worst = severity;
      row.metric = check.metric;
      row.value = check.value;
      row.limit = check.limit;
      row.batch = static_cast<std::int64_t>(head) / metrics.h;
      row.head = static_cast<std::int64_t>(head) % metrics.h;
      row.row = check.at.row;
      row.column = check.at.column;
    }
    row.failed_heads += failed ? 1 : 0;
    could_fail = could_fail || !metrics.heads[head].ref_all_zero;
  }
  if (row.failed_heads > 0) {
    row.verdict = Verdict::kFailed;
  } else if (!could_fail) {
    row.verdict = Verdict::kMistrusted;
    row.reason = "the truth is zero everywhere: a tensor of zeros would have passed";
  }
  return row;
}

void judge_only(Gate& gate, const std::vector<std::string>& names) {
  gate.judged = names;
  gate.observed = {"*"};
}

bool is_judged_by_request(const Gate& gate) {
  return contains(gate.observed, "*");
}

bool is_judged(const Gate& gate, std::string_view path, std::string_view backend) {
  if (is_listed(gate.judged, path, backend)) return true;
  if (contains(gate.observed, path)) return false;
  if (path.starts_with(kFaultPrefix)) {
    const std::size_t colon = path.find(':', kFaultPrefix.size());
    return colon != std::string_view::npos && is_judged(gate, path.substr(colon + 1), backend);
  }
  if (path.starts_with(kRecordedPrefix)) {
    if (contains(gate.observed, path.substr(kRecordedPrefix.size()))) return false;
    if (contains(gate.judged, "recorded.*")) return true;
  }
  return !contains(gate.observed, "*");
}

ExitCode exit_code(const std::vector<VerdictRow>& rows) {
  bool failed = false, inconclusive = false, broken = false, anything = false;
  for (const VerdictRow& row : rows) {
    if (!row.judged || row.verdict == Verdict::kSkipped) continue;
    anything = true;
    broken = broken || row.verdict == Verdict::kError;
    failed = failed || row.verdict == Verdict::kFailed;
    inconclusive =
        inconclusive || row.verdict == Verdict::kInconclusive || row.verdict == Verdict::kMistrusted;
  }
  if (broken) return ExitCode::kInternal;
  if (!anything) return ExitCode::kEnvironment;
  if (failed) return ExitCode::kFailed;
  return inconclusive ? ExitCode::kInconclusive : ExitCode::kPassed;
}

}  // namespace sinkscope
