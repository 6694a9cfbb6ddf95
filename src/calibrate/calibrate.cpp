// SPDX-License-Identifier: Apache-2.0
#include "src/calibrate/calibrate.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

#include "src/capture/capture.hpp"
#include "src/core/error.hpp"
#include "src/faults/fault.hpp"

namespace sinkscope {
namespace {

// Shapes that the seeds go round, so that lengths, groups, windows, documents and extreme sinks all take
// part.
constexpr std::array kShapes = {
    "b1 hq4 hkv4 sq64 sk64 d64",
    "b2 hq4 hkv2 sq129 sk129 d64",
    "b1 hq8 hkv1 sq256 sk256 d64 w32",
    "b1 hq4 hkv2 sq512 sk512 d64 w128",
    "b1 hq4 hkv1 sq384 sk384 d128",
    "b1 hq4 hkv2 sq300 sk300 d64 docs=100,1,0,199",
    "b1 hq8 hkv4 sq100 sk333 d64 sink=extreme",
    "b1 hq2 hkv2 sq1024 sk1024 d64",
};

std::string line_of(std::size_t shape, DType dtype, Fill fill, int seed) {
  return fmt::format("{} {} causal fill={} seed={}", kShapes[shape], name_of(dtype), name_of(fill), seed);
}

void note(Extreme& extreme, double value, const CaseResult& result, const std::string& path) {
  if (value <= extreme.value) return;
  extreme = {value, result.problem_line, path};
}

void note_healthy(Calibration& calibration, const CaseResult& result, const PathResult& path) {
  auto& extremes = calibration.healthy[result.shape.dtype];
  for (const TensorMetrics& metrics : path.metrics) {
    for (const HeadMetrics& head : metrics.heads) {
      if (metrics.tensor == TensorName::kDsinks) {
        note(extremes[5], head.z_max, result, path.path);
      } else if (metrics.tensor == TensorName::kLse) {
        note(extremes[3], head.z_rms, result, path.path);
        note(extremes[4], head.z_max, result, path.path);
      } else {
        note(extremes[0], head.z_rms, result, path.path);
        note(extremes[1], head.z_row, result, path.path);
        note(extremes[2], head.z_max, result, path.path);
      }
    }
  }
  for (const VerdictRow& row : path.verdicts) {
    calibration.tensors[result.shape.dtype] += 1;
    if (row.verdict == Verdict::kFailed && row.metric == "bias")
      calibration.healthy_bias_failures[result.shape.dtype] += 1;
  }
}

// The worst value/limit over a path's tensors; a lost repeatability or a NaN is beyond every limit.
double severity(const PathResult& path) {
  double worst = 0;
  for (const VerdictRow& row : path.verdicts) {
    if (row.head < 0) continue;
    const double ratio = row.limit > 0 ? row.value / row.limit : row.value > 0 ? INFINITY : 0;
    worst = std::isnan(ratio) ? INFINITY : std::max(worst, ratio);
  }
  return worst;
}

class Calibrator {
 public:
  Calibrator(const Gate& gate, const CalibrateOptions& options, const Progress& progress)
      : gate_(gate), options_(options), progress_(progress) {}

  Calibration run() {
    std::vector<Problem> problems;
    for (const std::string& path : options_.captures) {
      Problem problem;
      problem.capture = path;
      problems.push_back(problem);
    }
    int number = 0;
    for (int seed = 1; seed <= options_.seeds; ++seed) {
      for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
        for (const Fill fill : all_fills())
          problems.push_back(
              parse_problem(line_of(static_cast<std::size_t>(number++) % kShapes.size(), dtype, fill, seed)));
      }
    }
    for (std::size_t i = 0; i < problems.size(); ++i) {
      if (progress_)
        progress_("calibrate", to_string(problems[i]),
                  static_cast<double>(i) / static_cast<double>(problems.size()));
      run_case(make_case(problems[i], "", options_.threads));
    }
    for (const std::string& path : options_.paths) {
      if (!ran_[path])
        throw EnvironmentError(fmt::format("{} never ran, so its limits cannot be calibrated", path));
    }
    return std::move(calibration_);
  }

 private:
  void run_case(const Case& c) {
    CompareOptions options;
    options.paths = options_.paths;
    options.repeat = 1;
    options.threads = options_.threads;
    for (const Fault& fault : all_faults())
      options.paths.push_back(fmt::format("fault:{}:sink_kernel", fault.name));
    const CaseResult result = compare_case(c, gate_, options);
    ++calibration_.cases;
    for (const PathResult& path : result.paths) {
      if (path.backend.empty()) continue;  // skipped
      if (!path.path.starts_with("fault:")) {
        ran_[path.path] = true;
        note_healthy(calibration_, result, path);
      } else {
        const std::string fault = path.path.substr(6, path.path.rfind(':') - 6);
        calibration_.faults[c.problem.shape.dtype][fault].ratios.push_back(severity(path));
      }
    }
  }

  const Gate& gate_;
  const CalibrateOptions& options_;
  const Progress& progress_;
  Calibration calibration_;
  std::map<std::string, bool> ran_;
};

}  // namespace

double limit_of(const FormatLimits& limits, std::size_t index) {
  const std::array<double, kLimitNames.size()> all = {limits.tensors.z_rms, limits.tensors.z_row,
                                                      limits.tensors.z_max, limits.lse.z_rms,
                                                      limits.lse.z_max,     limits.dsinks};
  return all.at(index);
}

Calibration calibrate(const Gate& gate, const CalibrateOptions& options, const Progress& progress) {
  return Calibrator(gate, options, progress).run();
}

bool holds(const Calibration& calibration, const Gate& gate) {
  constexpr double kMostShare = 0.7;
  for (const auto& [dtype, extremes] : calibration.healthy) {
    for (std::size_t i = 0; i < extremes.size(); ++i) {
      if (!(extremes[i].value <= kMostShare * limit_of(gate.formats.at(dtype), i))) return false;
    }
  }
  return true;
}

}  // namespace sinkscope
