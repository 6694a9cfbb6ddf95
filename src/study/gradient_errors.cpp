// SPDX-License-Identifier: Apache-2.0
#include "src/study/gradient_errors.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "src/study/blocks.hpp"

namespace sinkscope {
namespace {

constexpr std::array<const char*, 4> kTensors = {"q", "k", "v", "sink"};

bool is_larger(double got, double than) {
  return std::isnan(got) ? !std::isnan(than) : got > than;
}

std::map<std::int64_t, const ReplayRow*> exact_rows(const TrainingRun& run) {
  std::map<std::int64_t, const ReplayRow*> rows;
  for (const ReplayRow& row : run.replays) {
    if (row.path == "exact") rows[row.step] = &row;
  }
  return rows;
}

// Which the run was trained through; steps that are not there yet are of the phase before them.
const std::string& training_path_at(const TrainingRun& run, std::int64_t step) {
  std::int64_t phase = 0;
  for (const StepRow& row : run.steps) {
    if (row.step <= step) phase = row.phase;
  }
  const auto i = static_cast<std::size_t>(phase);
  return i < run.phase_paths.size() ? run.phase_paths[i] : run.training_path;
}

GradientError error_of(const ReplayRow& row, const BlockName& block, double path2, double error2,
                       double exact2, double least) {
  const bool is_missing = path2 == 0 && exact2 > 0;
  const double beside = is_missing ? std::sqrt(exact2) : std::max(std::sqrt(exact2), least);
  const double error = error2 == 0 ? 0 : std::sqrt(error2) / beside;
  return {row.path, block, row.step, error, path2 == exact2 ? 1 : std::sqrt(path2 / exact2)};
}

template <typename Wanted>
std::vector<GradientError> worst_of(const TrainingRun& run, const Wanted& wanted) {
  const std::vector<BlockName> blocks = all_blocks(run.shape);
  const std::map<std::int64_t, const ReplayRow*> exact = exact_rows(run);
  std::map<std::string, GradientError> worst;
  for (const ReplayRow& row : run.replays) {
    if (!wanted(row) || !exact.contains(row.step)) continue;
    const ReplayRow& beside = *exact.at(row.step);
    const double least = kLeastShare * std::sqrt(sum(beside.norm2));
    const std::vector<double> path2 = to_list(row.norm2, run.shape), error2 = to_list(row.error2, run.shape),
                              exact2 = to_list(beside.norm2, run.shape);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const GradientError of = error_of(row, blocks[i], path2[i], error2[i], exact2[i], least);
      const auto [at, is_first] = worst.try_emplace(blocks[i].tensor, of);
      if (!is_first && is_larger(of.error, at->second.error)) at->second = of;
    }
  }
  std::vector<GradientError> errors;
  for (const char* tensor : kTensors) {
    if (worst.contains(tensor)) errors.push_back(worst.at(tensor));
  }
  return errors;
}

}  // namespace

std::vector<std::string> compared_paths(const TrainingRun& run) {
  std::vector<std::string> paths;
  for (const ReplayRow& row : run.replays) {
    if (row.path != "exact" && std::find(paths.begin(), paths.end(), row.path) == paths.end())
      paths.push_back(row.path);
  }
  return paths;
}

std::vector<GradientError> worst_errors(const TrainingRun& run, const std::string& path) {
  return worst_of(run, [&](const ReplayRow& row) { return row.path == path; });
}

std::vector<GradientError> worst_training_errors(const TrainingRun& run) {
  return worst_of(run, [&](const ReplayRow& row) { return row.path == training_path_at(run, row.step); });
}

std::optional<Direction> worst_direction(const TrainingRun& run, const std::string& path) {
  const std::map<std::int64_t, const ReplayRow*> exact = exact_rows(run);
  std::optional<Direction> worst;
  for (const ReplayRow& row : run.replays) {
    if (row.path != path || !exact.contains(row.step)) continue;
    const double path2 = sum(row.norm2), exact2 = sum(exact.at(row.step)->norm2), error2 = sum(row.error2);
    const double cosine = error2 == 0 ? 1 : (path2 + exact2 - error2) / (2 * std::sqrt(path2 * exact2));
    if (!worst || is_larger(-cosine, -worst->cosine)) worst = Direction{row.step, cosine};
  }
  return worst;
}

const GradientError& largest(const std::vector<GradientError>& errors) {
  return *std::max_element(errors.begin(), errors.end(), [](const GradientError& a, const GradientError& b) {
    return is_larger(b.error, a.error);
  });
}

}  // namespace sinkscope
