// SPDX-License-Identifier: Apache-2.0
#include "src/compare/compare.hpp"

#include <algorithm>
#include <cmath>
#include <new>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/compare/sentences.hpp"
#include "src/core/error.hpp"
#include "src/explain/explain.hpp"
#include "src/paths/table.hpp"

namespace sinkscope {
namespace {

constexpr std::string_view kBaseline = "eager";

// `judge_it`: the path is judged only because --judge says so.
std::string repro_line(const CaseResult& result, const std::string& path, bool judge_it) {
  const bool usual_truth = result.truth == name_of(TruthKind::kEigen);
  return fmt::format("sinkscope compare '{}' --paths '{}'{}{}", result.problem_line, path,
                     judge_it ? fmt::format(" --judge '{}'", path) : "",
                     usual_truth ? "" : fmt::format(" --truth {}", result.truth));
}

// One row that stands for a whole path.
VerdictRow whole_path_row(Verdict verdict, const std::string& reason) {
  VerdictRow row;
  row.verdict = verdict;
  row.reason = reason;
  return row;
}

// Outputs that the case asks for. A computed path that leaves one out has lost it.
bool is_asked(const Case& c, TensorName name) {
  const Grads& grads = c.problem.grads;
  const bool backward = c.dout.given();
  switch (name) {
    case TensorName::kOut:
      return true;
    case TensorName::kLse:
      return false;  // eager has none to give
    case TensorName::kDq:
      return backward && grads.q;
    case TensorName::kDk:
      return backward && grads.k;
    case TensorName::kDv:
      return backward && grads.v;
    case TensorName::kDsinks:
      return backward && grads.s && c.sinks.given();
  }
  return false;
}

bool truth_is_usable(const Truth& truth) {
  const auto finite = [](const std::vector<double>& values) {
    return std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); });
  };
  return finite(truth.value.out) && finite(truth.value.dq) && finite(truth.value.dk) &&
         finite(truth.value.dv) && finite(truth.value.dsinks) &&
         std::none_of(truth.value.lse.begin(), truth.value.lse.end(), [](double x) { return std::isnan(x); });
}

// Everything that one path is put through.
class PathComparison {
 public:
  PathComparison(const Case& c, const Gate& gate, const CompareOptions& options, const Truth& truth)
      : case_(c), gate_(gate), options_(options), truth_(truth) {
    explaining_.threads = options.threads;
    if (options.explain) explaining_.results = shared_results(c, options.threads);
  }

  // Told what is being explained.
  void report_to(std::function<void(std::string_view)> progress) {
    explaining_.progress = std::move(progress);
  }

  PathResult run(const Path& path, const PathResult* baseline) {
    PathResult result;
    result.path = path.name;
    try {
      if (const std::optional<std::string> reason = path.unsupported(case_)) {
        give_up(result, Verdict::kSkipped, *reason);
        return result;
      }
      const PathOptions path_options{options_.threads};
      PathRun first = path.run(case_, path_options);
      result.backend = first.backend;
      measure_outputs(first.outputs, baseline, result);
      for (int repeat = 1; repeat < options_.repeat && first.backend != "recorded"; ++repeat) {
        const PathRun again = path.run(case_, path_options);
        for (TensorMetrics& metrics : result.metrics)
          mark_unrepeatable(metrics, first.outputs[metrics.tensor], again.outputs[metrics.tensor]);
      }
      judge_outputs(first, result);
      if (options_.explain) {
        const bool no_dsinks = first.backend != "recorded" && is_asked(case_, TensorName::kDsinks) &&
                               !first.outputs.dsinks.given();
        result.explanation = explain(case_, gate_, first.outputs, result.metrics, no_dsinks, explaining_);
      }
      if (options_.keep_outputs) result.outputs = std::move(first.outputs);
    } catch (const InputError&) {
      throw;
    } catch (const EnvironmentError& error) {
      give_up(result, Verdict::kSkipped, error.what());
    } catch (const std::bad_alloc&) {
      give_up(result, Verdict::kSkipped, "out of memory");
    } catch (const std::exception& error) {
      give_up(result, Verdict::kError, error.what());
    }
    return result;
  }

 private:
  // Nothing of the path counts but the reason.
  static void give_up(PathResult& result, Verdict verdict, const std::string& reason) {
    result.metrics.clear();
    result.verdicts = {whole_path_row(verdict, reason)};
  }

  void measure_outputs(const Outputs& outputs, const PathResult* baseline, PathResult& result) const {
    for (const TensorName name : kTensorNames) {
      if (!outputs[name].given()) continue;
      const TensorMetrics* eager = nullptr;
      if (baseline != nullptr) {
        for (const TensorMetrics& metrics : baseline->metrics) {
          if (metrics.tensor == name) eager = &metrics;
        }
      }
      result.metrics.push_back(measure(case_, truth_, name, outputs[name], eager, options_.threads));
    }
  }

  void judge_outputs(const PathRun& run, PathResult& result) const {
    for (const TensorMetrics& metrics : result.metrics)
      result.verdicts.push_back(judge(gate_, case_.problem.shape.dtype, metrics));
    if (run.backend == "recorded") return;
    for (const TensorName name : kTensorNames) {
      if (!is_asked(case_, name) || run.outputs[name].given()) continue;
      VerdictRow row;
      row.tensor = text(name);
      row.verdict = Verdict::kFailed;
      row.metric = "missing";
      row.reason = fmt::format("the path gives no {}", text(name));
      row.value = 1;
      result.verdicts.push_back(row);
    }
  }

  const Case& case_;
  const Gate& gate_;
  const CompareOptions& options_;
  const Truth& truth_;
  ExplainOptions explaining_;
};

// What every row of a path says alike.
void complete_rows(CaseResult& result, PathResult& path, const Gate& gate) {
  path.judged = is_judged(gate, path.path, path.backend);
  for (VerdictRow& row : path.verdicts) {
    row.problem = result.name;
    row.path = path.path;
    row.judged = path.judged;
    row.repro = repro_line(result, path.path, path.judged && is_judged_by_request(gate));
  }
}

std::vector<Path> chosen_paths(const Case& c, const CompareOptions& options) {
  std::vector<Path> paths;
  if (options.paths.empty()) {
    paths = all_paths();
    for (const auto& [name, outputs] : c.recorded) paths.push_back(find_path("recorded." + name, c));
    return paths;
  }
  for (const std::string& name : options.paths) paths.push_back(find_path(name, c));
  return paths;
}

}  // namespace

CaseResult compare_case(const Case& c, const Gate& gate, const CompareOptions& options,
                        const Progress& progress) {
  return compare_case(c, gate, options, chosen_paths(c, options), progress);
}

CaseResult compare_case(const Case& c, const Gate& gate, const CompareOptions& options,
                        const std::vector<Path>& paths, const Progress& progress) {
  CaseResult result;
  result.name = c.name;
  result.problem_line = to_string(c.problem);
  result.inputs_sha256 = inputs_sha256(c);
  result.shape = c.problem.shape;
  result.seed = c.problem.seed;
  result.metadata = c.metadata;
  result.truth = name_of(options.truth);
  const auto report = [&](std::string_view stage, double share) {
    if (progress) progress(c.name, stage, share);
  };

  std::string unfit = fmt::format("{}", fmt::join(unfit_inputs(c), "; "));
  report("truth", 0);
  const Truth truth = truth_of(c, options.truth, options.threads);
  result.facts = head_facts(c, truth);
  if (unfit.empty() && !truth_is_usable(truth))
    unfit = "the truth is not finite: the inputs overflow even in double";

  PathComparison comparison(c, gate, options, truth);
  // The baseline first: other paths' ratios refer to it.
  std::optional<PathResult> baseline;
  const auto has_baseline =
      std::find_if(paths.begin(), paths.end(), [](const Path& path) { return path.name == kBaseline; });
  if (unfit.empty() && has_baseline != paths.end()) {
    report(kBaseline, 0.3);
    baseline = comparison.run(*has_baseline, nullptr);
  }
  for (std::size_t i = 0; i < paths.size(); ++i) {
    const double share = 0.4 + 0.6 * static_cast<double>(i) / static_cast<double>(paths.size());
    report(paths[i].name, share);
    comparison.report_to([&, share](std::string_view what) {
      report(fmt::format("{}: explaining {}", paths[i].name, what), share);
    });
    PathResult path;
    if (!unfit.empty()) {
      path.path = paths[i].name;
      path.verdicts.push_back(whole_path_row(Verdict::kInconclusive, unfit));
    } else if (baseline && paths[i].name == kBaseline) {
      path = *baseline;
    } else {
      path = comparison.run(paths[i], baseline ? &*baseline : nullptr);
    }
    complete_rows(result, path, gate);
    path.sentences = describe(path, result.facts, result.shape);
    result.paths.push_back(std::move(path));
  }
  return result;
}

std::vector<std::string> unmet_requirements(const CaseResult& result,
                                            const std::vector<std::string>& required) {
  std::vector<std::string> unmet;
  for (const std::string& requirement : required) {
    const bool is_fault = requirement.starts_with("fault:");
    const std::size_t colon = is_fault ? std::string::npos : requirement.find(':');
    const std::string name = requirement.substr(0, colon);
    const std::string backend = colon == std::string::npos ? "" : requirement.substr(colon + 1);
    const auto found = std::find_if(result.paths.begin(), result.paths.end(),
                                    [&](const PathResult& path) { return path.path == name; });
    if (found == result.paths.end()) {
      unmet.push_back(fmt::format("{} is required but was not among the paths of {}", name, result.name));
    } else if (found->backend.empty()) {
      unmet.push_back(
          fmt::format("{} is required but did not run on {}: {}", name, result.name,
                      found->verdicts.empty() ? "no reason given" : found->verdicts.front().reason));
    } else if (!found->backend.starts_with(backend)) {
      unmet.push_back(fmt::format("{} is required on {} but ran on {} in {}", name, backend, found->backend,
                                  result.name));
    }
  }
  return unmet;
}

void rejudge(CaseResult& result, const Gate& gate) {
  for (PathResult& path : result.paths) {
    std::vector<VerdictRow> rows;
    for (const TensorMetrics& metrics : path.metrics)
      rows.push_back(judge(gate, result.shape.dtype, metrics));
    for (const VerdictRow& row : path.verdicts) {
      if (row.tensor.empty() || row.metric == "missing") rows.push_back(row);
    }
    path.verdicts = std::move(rows);
    complete_rows(result, path, gate);
  }
}

}  // namespace sinkscope
