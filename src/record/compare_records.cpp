// SPDX-License-Identifier: Apache-2.0
#include "src/record/compare_records.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

namespace sinkscope {
namespace {

const CaseResult* find_case(const Record& record, const std::string& name) {
  for (const CaseResult& result : record.cases) {
    if (result.name == name) return &result;
  }
  return nullptr;
}

const PathResult* find_path_result(const CaseResult& result, const std::string& path) {
  for (const PathResult& candidate : result.paths) {
    if (candidate.path == path) return &candidate;
  }
  return nullptr;
}

const VerdictRow* find_verdict(const PathResult& path, const std::string& tensor) {
  for (const VerdictRow& row : path.verdicts) {
    if (row.tensor == tensor) return &row;
  }
  return nullptr;
}

// From best to worst.
int rank(Verdict verdict) {
  switch (verdict) {
    case Verdict::kPassed:
      return 0;
    case Verdict::kSkipped:
      return 1;
    case Verdict::kMistrusted:
      return 2;
    case Verdict::kInconclusive:
      return 3;
    case Verdict::kFailed:
      return 4;
    case Verdict::kError:
      return 5;
  }
  return 5;
}

struct Comparison {
  const Gate gate;
  const double factor, floor;
  std::vector<Change> changes;

  void add(ChangeKind kind, const std::string& problem, const std::string& path, const std::string& tensor,
           std::string sentence) {
    Change change;
    change.kind = kind;
    change.problem = problem;
    change.path = path;
    change.tensor = tensor;
    change.sentence = std::move(sentence);
    changes.push_back(std::move(change));
  }

  // A path that was skipped or broke has one row for the whole, without a tensor.
  static const VerdictRow* whole_path(const PathResult& path) { return find_verdict(path, ""); }

  void compare_whole_paths(const CaseResult& result, const PathResult& before, const PathResult& after) {
    const VerdictRow* then = whole_path(before);
    const VerdictRow* now = whole_path(after);
    if ((then == nullptr) == (now == nullptr)) return;
    const bool lost = now != nullptr;
    add(lost ? ChangeKind::kWorse : ChangeKind::kBetter, result.name, after.path, "",
        lost ? fmt::format("{} {}: {} ({}), was measured", result.name, after.path, text(now->verdict),
                           now->reason)
             : fmt::format("{} {}: measured, was {}", result.name, after.path, text(then->verdict)));
    changes.back().metric = "verdict";
  }

  void compare_verdicts(const CaseResult& result, const PathResult& before, const PathResult& after) {
    compare_whole_paths(result, before, after);
    for (const VerdictRow& now : after.verdicts) {
      const VerdictRow* then = find_verdict(before, now.tensor);
      if (then == nullptr || then->verdict == now.verdict) continue;
      const bool worse = rank(now.verdict) > rank(then->verdict);
      add(worse ? ChangeKind::kWorse : ChangeKind::kBetter, result.name, now.path, now.tensor,
          fmt::format("{} {} {}: {}, was {}", result.name, now.path, now.tensor, text(now.verdict),
                      text(then->verdict)));
      changes.back().metric = "verdict";
      changes.back().batch = now.batch;
      changes.back().head = now.head;
    }
  }

  void compare_heads(const CaseResult& result, const PathResult& path, const TensorMetrics& before,
                     const TensorMetrics& after) {
    const FormatLimits& limits = gate.formats.at(result.shape.dtype);
    const bool dsinks = after.tensor == TensorName::kDsinks;
    const Limits& of_tensor = after.tensor == TensorName::kLse ? limits.lse : limits.tensors;
    const struct {
      const char* name;
      double HeadMetrics::*member;
      double limit;
    } checks[] = {{"z_rms", &HeadMetrics::z_rms, dsinks ? INFINITY : of_tensor.z_rms},
                  {"z_row", &HeadMetrics::z_row, dsinks ? INFINITY : of_tensor.z_row},
                  {"z_max", &HeadMetrics::z_max, dsinks ? limits.dsinks : of_tensor.z_max}};
    for (const auto& check : checks) {
      Change worst;
      double worst_ratio = 0;
      for (std::size_t head = 0; head < after.heads.size() && head < before.heads.size(); ++head) {
        const double then = before.heads[head].*check.member;
        const double now = after.heads[head].*check.member;
        const bool fine = now <= floor * check.limit || now <= factor * then;
        const double ratio = fine ? 0 : now / std::max(then, 1e-300);
        if (fine || !(ratio > worst_ratio || std::isnan(ratio))) continue;
        worst_ratio = ratio;
        worst = {ChangeKind::kWorse,
                 result.name,
                 path.path,
                 std::string(text(after.tensor)),
                 check.name,
                 static_cast<std::int64_t>(head) / after.h,
                 static_cast<std::int64_t>(head) % after.h,
                 then,
                 now,
                 ""};
      }
      if (worst.metric.empty()) continue;
      worst.sentence =
          fmt::format("{} {} {} head {}: {} {:.3g}, was {:.3g} (limit {:.3g})", result.name, path.path,
                      worst.tensor, worst.head, check.name, worst.after, worst.before, check.limit);
      changes.push_back(std::move(worst));
    }
  }

  void compare_cases(const CaseResult& before, const CaseResult& after) {
    if (before.inputs_sha256 != after.inputs_sha256) {
      add(ChangeKind::kInputsDiffer, after.name, "", "",
          fmt::format("{}: the inputs differ, nothing can be compared", after.name));
      return;
    }
    for (const PathResult& now : after.paths) {
      const PathResult* then = find_path_result(before, now.path);
      if (then == nullptr) {
        add(ChangeKind::kAdded, after.name, now.path, "",
            fmt::format("{} {}: only in the second record", after.name, now.path));
        continue;
      }
      compare_verdicts(after, *then, now);
      for (const TensorMetrics& metrics : now.metrics) {
        for (const TensorMetrics& earlier : then->metrics) {
          if (earlier.tensor == metrics.tensor) compare_heads(after, now, earlier, metrics);
        }
      }
    }
    for (const PathResult& then : before.paths) {
      if (find_path_result(after, then.path) != nullptr) continue;
      add(ChangeKind::kRemoved, after.name, then.path, "",
          fmt::format("{} {}: only in the first record", after.name, then.path));
    }
  }
};

}  // namespace

std::vector<Change> compare_records(const Record& before, const Record& after, double factor, double floor) {
  Comparison comparison{parse_gate(after.gate_toml, "recorded"), factor, floor, {}};
  for (const CaseResult& now : after.cases) {
    if (const CaseResult* then = find_case(before, now.name)) {
      comparison.compare_cases(*then, now);
    } else {
      comparison.add(ChangeKind::kAdded, now.name, "", "",
                     fmt::format("{}: only in the second record", now.name));
    }
  }
  for (const CaseResult& then : before.cases) {
    if (find_case(after, then.name) != nullptr) continue;
    comparison.add(ChangeKind::kRemoved, then.name, "", "",
                   fmt::format("{}: only in the first record", then.name));
  }
  return comparison.changes;
}

}  // namespace sinkscope
