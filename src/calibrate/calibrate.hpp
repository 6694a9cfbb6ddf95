// SPDX-License-Identifier: Apache-2.0
// Where a gate's limits come from: the worst healthy value of every statistic over many seeds, all fills and
// the captures, and how far each planted fault goes over the limits.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "src/compare/compare.hpp"
#include "src/gate/gate.hpp"

namespace sinkscope {

struct CalibrateOptions {
  int seeds = 32;
  int threads = 0;
  std::vector<std::string> paths = {"sink_kernel", "flash_attention_2_sink"};
  std::vector<std::string> captures;
};

// The worst value of one statistic, and where it was seen.
struct Extreme {
  double value = 0;
  std::string problem_line;
  std::string path;
};

// Statistics that have a limit, in the order of the table.
inline constexpr std::array<std::string_view, 6> kLimitNames = {"z_rms",     "z_row",     "z_max",
                                                                "lse z_rms", "lse z_max", "dsinks |z|"};
double limit_of(const FormatLimits& limits, std::size_t index);

// How far a fault goes over the gate on one tensor: the least and the median of the worst value/limit over
// the cases that show it, and in how many it stays under.
struct FaultMargin {
  std::vector<double> ratios;  // of each case, over all tensors
};

struct Calibration {
  std::map<DType, std::array<Extreme, kLimitNames.size()>> healthy;
  std::map<DType, double> healthy_bias_failures;  // tensors that failed the bias test, of `tensors`
  std::map<DType, double> tensors;
  std::map<DType, std::map<std::string, FaultMargin>> faults;
  int cases = 0;
};

// Runs everything. Throws EnvironmentError when a path that is asked for never ran.
Calibration calibrate(const Gate& gate, const CalibrateOptions& options, const Progress& progress = {});

// As Markdown: limits, worst healthy values, their ratio, faults' margins.
std::string to_markdown(const Calibration& calibration, const Gate& gate, const CalibrateOptions& options,
                        const std::string& command);

// Does every healthy value stay at or under 0.7 of its limit?
bool holds(const Calibration& calibration, const Gate& gate);

}  // namespace sinkscope
