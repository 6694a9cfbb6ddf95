// SPDX-License-Identifier: Apache-2.0
#include "src/study/spike_causes.hpp"

#include <algorithm>
#include <map>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/capture/capture.hpp"
#include "src/compare/compare.hpp"
#include "src/core/error.hpp"
#include "src/faults/fault.hpp"
#include "src/spike/shapley.hpp"

namespace sinkscope {
namespace {

constexpr std::size_t kMostPlanted = 3;  // 2^3 gradients

bool can_be_planted(const std::string& cause) {
  const std::vector<Fault>& faults = all_faults();
  return std::any_of(faults.begin(), faults.end(), [&](const Fault& fault) { return fault.name == cause; });
}

// Of the path whose outputs the capture has, those that a fault is named after, the largest effect first.
std::vector<std::string> found_causes(const std::string& capture, const Gate& gate, int threads) {
  Problem problem;
  problem.capture = capture;
  const Case c = make_case(problem, "", threads);
  CompareOptions options;
  options.repeat = 1;
  options.threads = threads;
  options.explain = true;
  for (const auto& [name, outputs] : c.recorded) options.paths.push_back("recorded." + name);
  std::vector<std::string> causes;
  for (const PathResult& path : compare_case(c, gate, options).paths) {
    for (const Finding& finding : path.explanation.findings) {
      const bool is_new = std::find(causes.begin(), causes.end(), finding.cause) == causes.end();
      if (is_new && can_be_planted(finding.cause)) causes.push_back(finding.cause);
    }
  }
  causes.resize(std::min(causes.size(), kMostPlanted));
  return causes;
}

// "fault:A:fault:B:exact" of the causes in the mask.
std::string planted_path(const std::vector<std::string>& causes, std::uint32_t mask) {
  std::string path = "exact";
  for (std::size_t i = causes.size(); i-- > 0;) {
    if ((mask >> i & 1U) != 0) path = fmt::format("fault:{}:{}", causes[i], path);
  }
  return path;
}

double norm2(const lab::ReplayedPath& path) {
  double total = 0;
  for (const lab::ReplayedBlock& block : path.blocks) total += block.squared;
  return total;
}

}  // namespace

std::vector<CauseRow> causes_of(lab::Lab& lab, const lab::StepSettings& settings, const SpikeAt& spike,
                                const std::string& attention_capture, const Gate& gate, int threads) {
  const std::vector<std::string> causes = found_causes(attention_capture, gate, threads);
  std::vector<std::string> paths;
  for (std::uint32_t mask = 1; mask < 1U << causes.size(); ++mask)
    paths.push_back(planted_path(causes, mask));
  std::map<std::string, double> norms = {{"exact", spike.exact2}};
  try {
    if (!paths.empty()) {
      for (const lab::ReplayedPath& path : lab.replay(paths, settings)) norms[path.path] = norm2(path);
    }
  } catch (const InputError&) {
    // A mistake that the lab cannot plant in this model is no reason to end its training.
    const std::string rest = fmt::format("{} ({} not planted)", kRest, fmt::join(causes, ", "));
    return {{spike.step, rest, (spike.path2 - spike.exact2) / spike.rise}};
  }
  const CauseShares shares = shapley_shares(
      static_cast<int>(causes.size()),
      [&](std::uint32_t mask) { return norms.at(planted_path(causes, mask)); }, spike.path2);
  std::vector<CauseRow> rows;
  for (std::size_t i = 0; i < causes.size(); ++i)
    rows.push_back({spike.step, causes[i], shares.causes[i] / spike.rise});
  rows.push_back({spike.step, kRest, shares.rest / spike.rise});
  return rows;
}

}  // namespace sinkscope
