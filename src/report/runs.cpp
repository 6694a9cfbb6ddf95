// SPDX-License-Identifier: Apache-2.0
#include "src/report/runs.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

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

// "1.18 -> 0.29"
std::string ends(const std::vector<double>& values) {
  if (values.empty()) return "-";
  const auto count = static_cast<std::ptrdiff_t>(std::min(kEnds, values.size()));
  return fmt::format("{:.3g} -> {:.3g}", mean(values.begin(), values.begin() + count),
                     mean(values.end() - count, values.end()));
}

std::string run_line(const TrainingRun& run) {
  const std::vector<double> norms = column(run, &StepRow::gradient_norm);
  return fmt::format(
      "  {:<22} {:>5}  {:<16} {:<16} {:>8} {:>8} {:>7}\n", run.name, run.steps.size(),
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
  if (gaps.empty() || ratios.empty() || samples.empty()) return "";
  return fmt::format(
      "  - {}: rolled out through {}, trained through {}: mean |log-probability gap| {} (first and last "
      "steps), importance "
      "ratios up to {:.3g}, effective sample size down to {:.2f} of the samples\n",
      run.name, run.rollout_path, run.training_path, ends(gaps),
      *std::max_element(ratios.begin(), ratios.end()), *std::min_element(samples.begin(), samples.end()));
}

std::string error_sentences(const TrainingRun& run) {
  std::string sentences;
  for (const std::string& path : compared_paths(run)) {
    std::vector<std::string> parts;
    for (const GradientError& of : worst_errors(run, path)) {
      if (of.block.tensor == "sink" && of.gain == 0) {
        parts.emplace_back("the sinks get no gradient");
        continue;
      }
      parts.push_back(fmt::format("{} off by {:.2g} (length x {:.3g}, step {})", text(of.block), of.error,
                                  of.gain, of.step));
    }
    sentences += fmt::format("  - {}, gradient of {} beside exact attention's, worst heads: {}\n", run.name,
                             path, fmt::join(parts, "; "));
  }
  return sentences;
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
  for (const std::size_t i : order) parts.push_back(fmt::format("{} {:.2f}", text(names[i]), shares[i]));
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
      if (row.step == spike.step) causes.push_back(fmt::format("{} {:.2f}", row.cause, row.share));
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
  const auto name = record.attributes.find("scenario_name");
  std::string text = fmt::format("{}{}\n", name == record.attributes.end() ? "runs" : name->second,
                                 record.complete ? "" : "  (unfinished)");
  text += fmt::format("  {:<22} {:>5}  {:<16} {:<16} {:>8} {:>8} {:>7}\n", "run", "steps", "loss", "reward",
                      "|g| med", "max", "spikes");
  for (const TrainingRun& run : record.runs) text += run_line(run);
  for (const TrainingRun& run : record.runs) text += rollout_sentence(run) + error_sentences(run);
  for (const TrainingRun& run : record.runs) text += spike_lines(run);
  return text;
}

std::string render_run_verdicts(const std::vector<RunVerdict>& verdicts) {
  std::string lines;
  int failed = 0, judged = 0;
  for (const RunVerdict& of : verdicts) {
    lines += fmt::format("  {:<22} {}\n", of.run, sinkscope::text(of.verdict));
    for (const std::string& sentence : of.sentences) lines += fmt::format("  - {}: {}\n", of.run, sentence);
    failed += of.verdict == Verdict::kFailed ? 1 : 0;
    judged += of.verdict == Verdict::kSkipped ? 0 : 1;
  }
  const char* word = judged == 0 ? "NOTHING JUDGED" : failed > 0 ? "FAILED" : "PASSED";
  return lines + fmt::format("{}  runs: {} passed, {} failed\n", word, judged - failed, failed);
}

}  // namespace sinkscope
