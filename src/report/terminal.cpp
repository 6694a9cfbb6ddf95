// SPDX-License-Identifier: Apache-2.0
#include "src/report/terminal.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "fmt/format.h"

namespace sinkscope {
namespace {

constexpr const char* kReset = "\x1b[0m";
constexpr const char* kBold = "\x1b[1m";
constexpr const char* kDim = "\x1b[2m";
constexpr const char* kRed = "\x1b[31m";
constexpr const char* kGreen = "\x1b[32m";
constexpr const char* kYellow = "\x1b[33m";

std::string painted(const std::string& text, const char* colour, const TerminalStyle& style) {
  return style.colour ? colour + text + kReset : text;
}

const char* colour_of(const VerdictRow& row) {
  if (row.verdict == Verdict::kPassed) return kGreen;
  if (row.verdict == Verdict::kSkipped || !row.judged)
    return row.verdict == Verdict::kSkipped ? kDim : kYellow;
  return row.verdict == Verdict::kFailed || row.verdict == Verdict::kError ? kRed : kYellow;
}

// A number in few characters, the same width of sense everywhere.
std::string number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  if (value != 0 && (std::fabs(value) >= 1e4 || std::fabs(value) < 1e-3)) return fmt::format("{:.1e}", value);
  return fmt::format("{:.3g}", value);
}

std::string verdict_text(const VerdictRow& row) {
  const bool mark = !row.judged && row.verdict != Verdict::kPassed && row.verdict != Verdict::kSkipped;
  return fmt::format("{}{}", text(row.verdict), mark ? " (observed)" : "");
}

std::string head_label(const TensorMetrics& metrics, std::int64_t batch, std::int64_t head) {
  const bool of_keys = is_of_keys(metrics.tensor);
  const std::string label = fmt::format("{}{}", of_keys ? "kv " : "", head);
  return metrics.b > 1 ? fmt::format("b{} {}", batch, label) : label;
}

// Mean sink mass of a query head, or of the group that shares a key/value head.
double sink_mass(const CaseResult& result, const TensorMetrics& metrics, std::int64_t batch,
                 std::int64_t head) {
  const AttentionShape& s = result.shape;
  const bool of_keys = is_of_keys(metrics.tensor);
  const std::int64_t group = of_keys ? s.group() : 1;
  double sum = 0;
  std::int64_t count = 0;
  for (std::int64_t b = 0; b < s.b; ++b) {
    if (metrics.tensor != TensorName::kDsinks && b != batch) continue;
    for (std::int64_t h = head * group; h < (head + 1) * group; ++h, ++count) {
      sum += result.facts.p_sink_mean.at(static_cast<std::size_t>(b * s.hq + h));
    }
  }
  return sum / static_cast<double>(count);
}

const TensorMetrics* metrics_of(const PathResult& path, const std::string& tensor) {
  for (const TensorMetrics& metrics : path.metrics) {
    if (text(metrics.tensor) == tensor) return &metrics;
  }
  return nullptr;
}

// The width of the column of paths.
std::size_t label_width(const CaseResult& result) {
  std::size_t width = 18;
  for (const PathResult& path : result.paths) width = std::max(width, path.path.size());
  return width;
}

std::string table_row(const CaseResult& result, const PathResult& path, const VerdictRow& row,
                      const std::string& name, const TerminalStyle& style) {
  const std::string label = fmt::format("{:<{}}", name, label_width(result));
  const std::string verdict = fmt::format("{:<19}", verdict_text(row));
  const std::string coloured = painted(verdict, colour_of(row), style);
  const TensorMetrics* metrics = metrics_of(path, row.tensor);
  if (metrics == nullptr || row.head < 0) {
    return fmt::format("  {} {:<7} {} {}\n", label, row.tensor, coloured, row.reason);
  }
  const HeadMetrics& head = metrics->heads.at(static_cast<std::size_t>(row.batch * metrics->h + row.head));
  return fmt::format("  {} {:<7} {} {:>9}  {:<10} {:>8} {:>7} {:>8.0f}% {:>9}{}\n", label, row.tensor,
                     coloured, head_label(*metrics, row.batch, row.head), row.metric, number(row.value),
                     number(row.limit), 100 * sink_mass(result, *metrics, row.batch, row.head),
                     number(head.rel_l2), row.reason.empty() ? "" : "  " + row.reason);
}

std::string head_table(const CaseResult& result, const TensorMetrics& metrics) {
  std::string text =
      fmt::format("      {:>9} {:>8} {:>8} {:>8} {:>9} {:>9} {:>7} {:>8} {:>9} {:>9}\n", "head", "z_rms",
                  "z_row", "z_max", "max_abs", "rel_l2", "gain", "bias_t", "ulp_p99", "sink");
  for (std::size_t i = 0; i < metrics.heads.size(); ++i) {
    const HeadMetrics& m = metrics.heads[i];
    const std::int64_t batch = static_cast<std::int64_t>(i) / metrics.h;
    const std::int64_t head = static_cast<std::int64_t>(i) % metrics.h;
    text += fmt::format("      {:>9} {:>8} {:>8} {:>8} {:>9} {:>9} {:>7} {:>8} {:>9} {:>8.0f}%\n",
                        head_label(metrics, batch, head), number(m.z_rms), number(m.z_row), number(m.z_max),
                        number(m.max_abs), number(m.rel_l2), number(m.gain), number(m.bias_t),
                        number(m.ulp_p99), 100 * sink_mass(result, metrics, batch, head));
  }
  return text;
}

bool is_bad(const VerdictRow& row) {
  return row.judged && row.verdict != Verdict::kPassed && row.verdict != Verdict::kSkipped;
}

}  // namespace

std::string render_case(const CaseResult& result, const TerminalStyle& style) {
  if (style.quiet) return {};
  const AttentionShape& s = result.shape;
  std::string out = fmt::format("{}  {}\n", painted(result.name, kBold, style), result.problem_line);
  if (result.problem_line.starts_with("capture=")) {
    out += painted(fmt::format("  b{} hq{} hkv{} sq{} sk{} d{} {} {}{}\n", s.b, s.hq, s.hkv, s.sq, s.sk, s.d,
                               name_of(s.dtype), s.causal ? "causal" : "full",
                               s.window > 0 ? fmt::format(" w{}", s.window) : ""),
                   kDim, style);
  }
  out += painted(fmt::format("  {:<{}} {:<7} {:<19} {:>9}  {:<10} {:>8} {:>7} {:>9} {:>9}", "path",
                             label_width(result), "tensor", "verdict", "worst", "metric", "value", "limit",
                             "sink mass", "rel L2"),
                 kDim, style) +
         "\n";
  for (const PathResult& path : result.paths) {
    std::string label = path.path;
    for (const VerdictRow& row : path.verdicts) {
      out += table_row(result, path, row, label, style);
      label.clear();
      const TensorMetrics* metrics = metrics_of(path, row.tensor);
      if (style.verbose && metrics != nullptr) out += head_table(result, *metrics);
    }
    if (style.verbose && !path.backend.empty())
      out += painted(fmt::format("      backend: {}\n", path.backend), kDim, style);
  }
  for (const PathResult& path : result.paths) {
    for (const std::string& sentence : path.sentences) out += fmt::format("  - {}\n", sentence);
  }
  return out + "\n";
}

std::string render_summary(const std::vector<VerdictRow>& rows, const TerminalStyle& style) {
  std::string out;
  std::array<int, 6> judged{}, observed{};
  for (const VerdictRow& row : rows) {
    ++(row.judged ? judged : observed)[static_cast<std::size_t>(row.verdict)];
    if (!is_bad(row)) continue;
    const std::string where =
        row.head < 0 ? row.reason
                     : fmt::format("{}: {} {} over limit {}{}", place_of(row), row.metric, number(row.value),
                                   number(row.limit), row.reason.empty() ? "" : " (" + row.reason + ")");
    out += fmt::format("{} {} {} {}: {}\n    {}\n",
                       painted(std::string(text(row.verdict)), colour_of(row), style), row.problem, row.path,
                       row.tensor, where, row.repro);
  }
  const auto count = [](const std::array<int, 6>& counts) {
    std::string text_of;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] == 0) continue;
      text_of +=
          fmt::format("{}{} {}", text_of.empty() ? "" : ", ", counts[i], text(static_cast<Verdict>(i)));
    }
    return text_of.empty() ? std::string("none") : text_of;
  };
  const ExitCode code = exit_code(rows);
  const std::string word = code == ExitCode::kPassed         ? "PASSED"
                           : code == ExitCode::kFailed       ? "FAILED"
                           : code == ExitCode::kInconclusive ? "INCONCLUSIVE"
                           : code == ExitCode::kEnvironment  ? "NOTHING JUDGED"
                                                             : "ERROR";
  out += fmt::format("{}  judged tensors: {}; observed, not deciding: {}\n",
                     painted(word, code == ExitCode::kPassed ? kGreen : kRed, style), count(judged),
                     count(observed));
  return out;
}

std::string render_changes(const std::vector<Change>& changes, const TerminalStyle& style) {
  constexpr std::array<const char*, 5> kWords = {"worse", "better", "added", "removed", "differs"};
  std::string out;
  int worse = 0;
  for (const Change& change : changes) {
    const bool bad = change.kind == ChangeKind::kWorse || change.kind == ChangeKind::kInputsDiffer;
    worse += bad ? 1 : 0;
    if (style.quiet && !bad) continue;
    out += fmt::format("{:<8} {}\n",
                       painted(kWords[static_cast<std::size_t>(change.kind)], bad ? kRed : kGreen, style),
                       change.sentence);
  }
  out += changes.empty() ? "nothing changed\n"
                         : fmt::format("{} changes, {} for the worse\n", changes.size(), worse);
  return out;
}

}  // namespace sinkscope
