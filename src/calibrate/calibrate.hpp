// SPDX-License-Identifier: Apache-2.0
// Where a gate's limits come from: the worst healthy value of every statistic over many seeds, all fills and
// the captures, and how far each planted fault goes over the limits.
#pragma once

#include <array>
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
  std::vector<std::string> paths = {"sink_kernel", "flash_attention_2_sink"};  // held to be healthy
  std::vector<std::string> captures;
};

// The worst value of one statistic, and where it was seen.
struct Extreme {
  double value = 0;
  std::string problem_line;
  std::string tensor;
};

// Statistics that have a limit, in the order of the table. The signed bias counts where its t is significant, as in the gate.
inline constexpr std::array<std::string_view, 7> kLimitNames = {
    "z_rms", "z_row", "z_max", "lse z_rms", "lse z_max", "dsinks abs z", "bias z"};
using Extremes = std::array<Extreme, kLimitNames.size()>;
double limit_of(const Gate& gate, DType dtype, std::size_t index);

struct HealthyPath {
  std::string backend;
  bool judged = false;  // only judged paths bind the limits
  std::map<DType, Extremes> worst;
};

struct Calibration {
  std::map<std::string, HealthyPath> healthy;
  // Of each planted fault, the worst value/limit of each case that can show it.
  std::map<DType, std::map<std::string, std::vector<double>>> faults;
  int cases = 0;
};

// Runs everything: about 20 cases a seed. Throws EnvironmentError when a path of `options` never ran.
Calibration calibrate(const Gate& gate, const CalibrateOptions& options, const Progress& progress = {});

// The tables of reports/gates/calibration.md.
std::string to_markdown(const Calibration& calibration, const Gate& gate, const CalibrateOptions& options,
                        const std::string& command);

// Does every value of the judged paths stay at or under 0.7 of its limit?
bool holds(const Calibration& calibration, const Gate& gate);

}  // namespace sinkscope
