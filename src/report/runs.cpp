// SPDX-License-Identifier: Apache-2.0
#include "src/report/runs.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/spike/detector.hpp"
#include "src/study/blocks.hpp"
#include "src/study/gradient_errors.hpp"

namespace sinkscope {
namespace {

constexpr std::size_t kEnds = 5;        // steps whose mean stands for the start and the end of a run
constexpr std::size_t kMostBlocks = 3;  // of a spike, with a share of their own

// Column of a run's steps, without those that have no such number.
std::vector<double> column(const TrainingRun& run, double StepRow::*value) {
  std::vector<double> values;
  for (const StepRow& row : run.steps) {
    if (!std::isnan(row.*value)) values.push_back(row.*value);
  }
  return values;
}

double mean(std::vector<double>::const_iterator first, std::vector<double>::const_iterator last) {
  return std::accumulate(first, last, 0.0) / static_cast<double>(last - first);
}

// A policy gradient's loss is zero but for rounding.
std::string number(double value) {
  constexpr double kNothing = 1e-6;
  return fmt::format("{:.3g}", std::abs(value) < kNothing ? 0 : value);
}

// "1.18 -> 0.29"
std::string ends(const std::vector<double>& values) {
  if (values.empty()) return "-";
  const auto count = static_cast<std::ptrdiff_t>(std::min(kEnds, values.size()));
  return number(mean(values.begin(), values.begin() + count)) + " -> " +
         number(mean(values.end() - count, values.end()));
}

// "-0.25", and never "-0.00".
std::string share_text(double share) {
  return fmt::format("{:.2f}", std::round(100 * share) / 100 + 0.0);
}

std::string run_line(const TrainingRun& run) {
  const std::vector<double> norms = column(run, &StepRow::gradient_norm);
  return fmt::format(
      "  {:<26} {:>5}  {:<16} {:<16} {:>8} {:>8} {:>7}\n", run.name, run.steps.size(),
      ends(column(run, &StepRow::loss)), ends(column(run, &StepRow::reward)),
      norms.empty() ? "-" : fmt::format("{:.3g}", median(norms)),
      norms.empty() ? "-" : fmt::format("{:.3g}", *std::max_element(norms.begin(), norms.end())),
      run.spikes.size());
}

// What rollouts and training path disagree in.
std::string rollout_sentence(const TrainingRun& run) {
  const std::vector<double> gaps = column(run, &StepRow::log_prob_gap);
  const std::vector<double> ratios = column(run, &StepRow::ratio_max);
  const std::vector<double> samples = column(run, &StepRow::effective_samples);
  if (gaps.empty() || ratios.empty() || samples.empty() || run.rollout_path.empty()) return "";
  return fmt::format(
      "  - {}: rolled out through {}, trained through {}: mean |log-probability gap| {}, importance ratios "
      "up to {:.3g}, "
      "effective sample size down to {:.2f}\n",
      run.name, run.rollout_path, run.training_path, ends(gaps),
      *std::max_element(ratios.begin(), ratios.end()), *std::min_element(samples.begin(), samples.end()));
}

// "0.013 x0.99 L0 h2"
std::string error_text(const GradientError& of) {
  if (of.block.tensor == "sink" && of.gain == 0) return "no gradient";
  return fmt::format("{:.2g} x{:.3g} L{} {}{}", of.error, of.gain, of.block.layer,
                     of.block.tensor == "k" || of.block.tensor == "v" ? "kv" : "h", of.block.head);
}

std::string error_line(const TrainingRun& run, const std::string& path) {
  const std::vector<GradientError> errors = worst_errors(run, path);
  const std::optional<Direction> direction = worst_direction(run, path);
  std::string line = fmt::format("  {:<26} {:<26} {:>6}", run.name, path,
                                 direction ? fmt::format("{:.3f}", direction->cosine) : "-");
  for (const char* tensor : {"q", "k", "v", "sink"}) {
    const auto same = [&](const GradientError& of) { return of.block.tensor == tensor; };
    const auto found = std::find_if(errors.begin(), errors.end(), same);
    line += fmt::format(" {:<19}", found == errors.end() ? "-" : error_text(*found));
  }
  return line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
}

std::string error_table(const RunRecord& record) {
  std::string lines;
  for (const TrainingRun& run : record.runs) {
    for (const std::string& path : compared_paths(run)) lines += error_line(run, path);
  }
  if (lines.empty()) return "";
  return fmt::format(
      "  gradients beside exact attention's at the sampled steps: the least cosine of the whole; |g - g_e| / "
      "|g_e| (of {:g} of the whole at least) and length x|g| / |g_e| of the worst head (L: layer)\n"
      "  {:<26} {:<26} {:>6} {:<19} {:<19} {:<19} {}\n{}",
      kLeastShare, "run", "path", "cosine", "q", "k", "v", "sink", lines);
}

// What the worst head of its training path means for a run.
std::string error_sentence(const TrainingRun& run) {
  const std::vector<GradientError> errors = worst_training_errors(run);
  if (errors.empty()) return "";
  const GradientError& worst = largest(errors);
  const std::string size = worst.error < 1 ? fmt::format("{:.3g} %", 100 * worst.error)
                                           : fmt::format("{:.3g} times the length", worst.error);
  const std::optional<Direction> direction = worst_direction(run, worst.path);
  const std::string away = direction && direction->cosine < 0
                               ? fmt::format("; at step {} the whole points away from it, cosine {:.2f}",
                                             direction->step, direction->cosine)
                               : "";
  const bool sinks_train = errors.back().block.tensor != "sink" || errors.back().gain > 0;
  return fmt::format(
      "  - {}: under {} the gradient is off by {} of exact attention's in the worst head, {} at step "
      "{}{}{}\n",
      run.name, worst.path, size, text(worst.block), worst.step,
      sinks_train ? "" : ", and the sinks get none", away);
}

// The largest shares in size.
std::string block_text(const SpikeRow& spike, const RunShape& shape) {
  const std::vector<BlockName> names = all_blocks(shape);
  const std::vector<double> shares = to_list(spike.share, shape);
  std::vector<std::size_t> order(names.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return std::abs(shares[a]) > std::abs(shares[b]); });
  order.resize(std::min(order.size(), kMostBlocks));
  std::vector<std::string> parts;
  parts.reserve(order.size());
  for (const std::size_t i : order)
    parts.push_back(fmt::format("{} {}", text(names[i]), share_text(shares[i])));
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string spike_lines(const TrainingRun& run) {
  if (run.spikes.empty()) return "";
  std::string lines =
      fmt::format("  spikes of {}\n    {:>5} {:>6} {:>8} {:>8} {:>8} {:>7} {:<13} {}\n", run.name, "step",
                  "z", "|g|", "median", "|g_e|", "F", "verdict", "largest shares of F; causes");
  for (const SpikeRow& spike : run.spikes) {
    std::vector<std::string> causes;
    for (const CauseRow& row : run.causes) {
      if (row.step == spike.step) causes.push_back(fmt::format("{} {}", row.cause, share_text(row.share)));
    }
    lines += fmt::format("    {:>5} {:>6.3g} {:>8.3g} {:>8.3g} {:>8.3g} {:>7.2f} {:<13} {}{}{}\n", spike.step,
                         spike.z, spike.gradient_norm, spike.median, spike.exact_norm, spike.fraction,
                         spike.verdict, block_text(spike, run.shape), causes.empty() ? "" : "; ",
                         fmt::join(causes, ", "));
  }
  return lines;
}

}  // namespace

std::string render_runs(const RunRecord& record) {
  const auto attribute = [&](const char* name, const char* before, const char* otherwise) {
    const auto found = record.attributes.find(name);
    return found == record.attributes.end() ? otherwise : before + found->second;
  };
  std::string text = fmt::format("{}{}{}\n", attribute("scenario_name", "", "runs"),
                                 attribute("seed", ", seed ", ""), record.complete ? "" : "  (unfinished)");
  text += fmt::format("  {:<26} {:>5}  {:<16} {:<16} {:>8} {:>8} {:>7}\n", "run", "steps", "loss", "reward",
                      "|g| med", "max", "spikes");
  for (const TrainingRun& run : record.runs) text += run_line(run);
  text += error_table(record);
  for (const TrainingRun& run : record.runs) text += spike_lines(run);
  for (const TrainingRun& run : record.runs) text += error_sentence(run) + rollout_sentence(run);
  return text;
}

std::string render_run_verdicts(const std::vector<RunVerdict>& verdicts) {
  std::string lines;
  int failed = 0, judged = 0;
  for (const RunVerdict& of : verdicts) {
    lines += fmt::format("  {:<26} {}\n", of.run, sinkscope::text(of.verdict));
    for (const std::string& sentence : of.sentences) lines += fmt::format("  - {}: {}\n", of.run, sentence);
    failed += of.verdict == Verdict::kFailed ? 1 : 0;
    judged += of.verdict == Verdict::kSkipped ? 0 : 1;
  }
  const char* word = judged == 0 ? "NOTHING JUDGED" : failed > 0 ? "FAILED" : "PASSED";
  return lines + fmt::format("{}  runs: {} passed, {} failed\n", word, judged - failed, failed);
}

}  // namespace sinkscope
