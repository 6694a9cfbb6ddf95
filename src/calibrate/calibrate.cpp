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

void note_healthy(const Gate& gate, const CaseResult& result, const PathResult& path, HealthyPath& healthy) {
  healthy.backend = path.backend;
  healthy.judged = path.judged;
  Extremes& worst = healthy.worst[result.shape.dtype];
  const auto note = [&](std::size_t index, double value, const TensorMetrics& metrics) {
    if (!(value <= worst[index].value))
      worst[index] = {value, result.problem_line, std::string(text(metrics.tensor))};
  };
  for (const TensorMetrics& metrics : path.metrics) {
    for (const HeadMetrics& head : metrics.heads) {
      if (metrics.tensor == TensorName::kDsinks) {
        note(5, head.z_max, metrics);
      } else if (metrics.tensor == TensorName::kLse) {
        note(3, head.z_rms, metrics);
        note(4, head.z_max, metrics);
      } else {
        note(0, head.z_rms, metrics);
        note(1, head.z_row, metrics);
        note(2, head.z_max, metrics);
      }
      if (bias_is_significant(gate, metrics, head)) note(6, head.bias_z, metrics);
    }
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
      if (!calibration_.healthy.contains(path))
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
    for (const Fault& fault : gate_faults())
      options.paths.push_back(fmt::format("fault:{}:sink_kernel", fault.name));
    const CaseResult result = compare_case(c, gate_, options);
    ++calibration_.cases;
    for (const PathResult& path : result.paths) {
      if (path.backend.empty()) continue;  // skipped
      if (!path.path.starts_with("fault:")) {
        note_healthy(gate_, result, path, calibration_.healthy[path.path]);
      } else {
        const std::string fault = path.path.substr(6, path.path.rfind(':') - 6);
        calibration_.faults[c.problem.shape.dtype][fault].push_back(severity(path));
      }
    }
  }

  const Gate& gate_;
  const CalibrateOptions& options_;
  const Progress& progress_;
  Calibration calibration_;
};

}  // namespace

double limit_of(const Gate& gate, DType dtype, std::size_t index) {
  const FormatLimits& limits = gate.formats.at(dtype);
  const std::array<double, kLimitNames.size()> all = {
      limits.tensors.z_rms, limits.tensors.z_row, limits.tensors.z_max, limits.lse.z_rms,
      limits.lse.z_max,     limits.dsinks,        limits.bias_z};
  return all.at(index);
}

Calibration calibrate(const Gate& gate, const CalibrateOptions& options, const Progress& progress) {
  return Calibrator(gate, options, progress).run();
}

bool holds(const Calibration& calibration, const Gate& gate) {
  constexpr double kMostShare = 0.7;
  for (const auto& [name, path] : calibration.healthy) {
    if (!path.judged) continue;
    for (const auto& [dtype, worst] : path.worst) {
      for (std::size_t i = 0; i < worst.size(); ++i) {
        if (!(worst[i].value <= kMostShare * limit_of(gate, dtype, i))) return false;
      }
    }
  }
  return true;
}

}  // namespace sinkscope
