// SPDX-License-Identifier: Apache-2.0
#include "src/calibrate/fault_trial.hpp"

#include <algorithm>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/calibrate/fault_expectation.hpp"
#include "src/calibrate/fault_scope.hpp"
#include "src/core/error.hpp"
#include "src/explain/explain.hpp"
#include "src/paths/table.hpp"

namespace sinkscope {
namespace {

// Outputs that a path must give where the case asks for them; eager, the baseline, gives no LSE.
bool is_asked(const Case& c, TensorName name) {
  const Grads& g = c.problem.grads;
  switch (name) {
    case TensorName::kOut:
    case TensorName::kLse:
      return true;
    case TensorName::kDq:
      return c.dout.given() && g.q;
    case TensorName::kDk:
      return c.dout.given() && g.k;
    case TensorName::kDv:
      return c.dout.given() && g.v;
    case TensorName::kDsinks:
      return c.dout.given() && g.s && c.sinks.given();
  }
  return false;
}

bool is_rounding(const std::string& cause) {
  return cause.starts_with("rounding:");
}

bool names(const Finding& finding, const std::string& cause) {
  return finding.cause == cause ||
         std::find(finding.equivalent.begin(), finding.equivalent.end(), cause) != finding.equivalent.end();
}

std::string summary_of(const std::vector<Finding>& findings) {
  std::vector<std::string> parts;
  parts.reserve(findings.size());
  for (const Finding& f : findings) {
    parts.push_back(f.cause == kNoCause ? f.cause
                                        : fmt::format("{} in {} ({:.0f} %, z_rms {:.2g})", f.cause,
                                                      scope_text(f), 100 * f.share, f.residual_z));
  }
  return fmt::format("{}", fmt::join(parts, "; "));
}

Naming naming_of(const std::vector<Finding>& findings, const FaultExpectation& expected,
                 const PlantedScope& scope) {
  const bool wants_none = expected.cause == kUnknownCause;
  bool named = false, only_named = true;
  for (const Finding& finding : findings) {
    if (finding.cause == kNoCause) return Naming::kUnexplained;
    if (names(finding, expected.cause)) {
      named = true;
    } else if (finding.cause == kUnknownCause) {
      only_named = false;
    } else {
      return Naming::kWrong;
    }
  }
  if (!named) return Naming::kUnexplained;
  return only_named && (wants_none || is_scope_right(scope, findings)) ? Naming::kRight : Naming::kInPart;
}

struct Measured {
  std::vector<TensorMetrics> metrics;
  bool dsinks_missing = false;
};

// Fills what the gate and the others say.
Measured judge_outputs(const FaultCase& f, const Gate& gate, const Outputs& outputs, FaultTrial& trial) {
  Measured measured;
  trial.planted = true;
  const DType dtype = f.c.problem.shape.dtype;
  for (const TensorName name : kTensorNames) {
    if (!is_asked(f.c, name)) continue;
    trial.peers |= judge_by_peers(f.c, f.truth, name, outputs[name], f.eager[name]);
    if (!outputs[name].given()) {
      trial.caught = true;
      measured.dsinks_missing = measured.dsinks_missing || name == TensorName::kDsinks;
      continue;
    }
    const TensorMetrics metrics = measure(f.c, f.truth, name, outputs[name], nullptr, 1);
    const std::vector<bool> failed = failed_heads(gate, dtype, metrics);
    trial.caught = trial.caught || std::find(failed.begin(), failed.end(), true) != failed.end();
    measured.metrics.push_back(metrics);
  }
  return measured;
}

}  // namespace

VisibleBounds visible_bounds(const Gate& gate, DType dtype, TensorName tensor) {
  constexpr double kRms = 1.26, kTimesLimit = 1.2;
  const FormatLimits& limits = gate.formats.at(dtype);
  if (tensor == TensorName::kDsinks) return {limits.dsinks, limits.dsinks};
  const Limits& own = tensor == TensorName::kLse ? limits.lse : limits.tensors;
  return {dtype == DType::kFp32 ? kTimesLimit * own.z_rms : kRms, own.z_max};
}

FaultCase prepare_fault_case(Case c, std::optional<std::int64_t> kv_head, int threads) {
  FaultCase f;
  f.c = std::move(c);
  const std::vector<std::string> unfit = unfit_inputs(f.c);
  if (!unfit.empty())
    throw InputError(fmt::format("{}: nothing can be planted: {}", f.c.name, fmt::join(unfit, "; ")));
  f.truth = compute_truth(f.c, threads);
  f.healthy = find_path("sink_kernel", f.c);
  f.right = f.healthy.run(f.c, {threads}).outputs;
  f.kv_head = kv_head;
  const Path eager = find_path("eager", f.c);
  if (!eager.unsupported(f.c)) f.eager = eager.run(f.c, {threads}).outputs;
  return f;
}

FaultTrial try_healthy(const FaultCase& f, const Gate& gate) {
  FaultTrial trial;
  const Measured measured = judge_outputs(f, gate, f.right, trial);
  const std::vector<Finding> findings =
      explain(f.c, f.truth, gate, f.right, measured.metrics, measured.dsinks_missing, {.threads = 1})
          .findings;
  trial.said = summary_of(findings);
  const bool silent = std::all_of(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.cause == kNoCause || is_rounding(finding.cause);
  });
  trial.naming = silent ? Naming::kRight : Naming::kWrong;
  return trial;
}

FaultTrial try_fault(const FaultCase& f, const Gate& gate, const Fault& fault, bool withhold) {
  FaultTrial trial;
  const Path path = f.kv_head ? plant_in_group(fault, f.healthy, *f.kv_head) : fault.plant(f.healthy);
  if (path.unsupported(f.c)) return trial;
  const Outputs outputs = path.run(f.c, {1}).outputs;
  const Measured measured = judge_outputs(f, gate, outputs, trial);
  const FaultExpectation expected = expectation_of(fault.name);
  const PlantedScope scope = planted_scope(f, gate, outputs, measured.metrics, expected.in_one_head);
  trial.visible = !scope.visible.empty() || !scope.missing.empty();
  if (!trial.caught) return trial;
  ExplainOptions options;
  options.threads = 1;
  const std::vector<Finding> findings =
      explain(f.c, f.truth, gate, outputs, measured.metrics, measured.dsinks_missing, options).findings;
  trial.said = summary_of(findings);
  trial.naming = naming_of(findings, expected, scope);
  if (!withhold) return trial;
  trial.withheld = true;
  options.withheld = expected.family;
  const std::vector<Finding> without =
      explain(f.c, f.truth, gate, outputs, measured.metrics, measured.dsinks_missing, options).findings;
  trial.said_withheld = summary_of(without);
  trial.withheld_named = std::any_of(without.begin(), without.end(), [&](const Finding& finding) {
    const bool is_plain_truth = expected.loses_dsinks && finding.cause == "dsink_missing";
    return finding.cause != kUnknownCause && finding.cause != kNoCause && !is_rounding(finding.cause) &&
           !is_plain_truth;
  });
  return trial;
}

}  // namespace sinkscope
