// SPDX-License-Identifier: Apache-2.0
#include "src/compare/sentences.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

namespace sinkscope {
namespace {

constexpr double kAgreement = 0.03;    // two gains that differ by less are taken to be the same
constexpr double kVisibleGain = 1.03;  // a sink whose loss shows less cannot be told from rounding
constexpr double kSameFactor = 0.005;  // spread of the gains of heads that are all scaled alike

const TensorMetrics* find(const PathResult& path, TensorName name) {
  for (const TensorMetrics& metrics : path.metrics) {
    if (metrics.tensor == name) return &metrics;
  }
  return nullptr;
}

const VerdictRow* verdict_of(const PathResult& path, TensorName name) {
  for (const VerdictRow& row : path.verdicts) {
    if (row.tensor == text(name)) return &row;
  }
  return nullptr;
}

bool failed(const PathResult& path, TensorName name) {
  const VerdictRow* row = verdict_of(path, name);
  return row != nullptr && row->verdict == Verdict::kFailed;
}

bool passed(const PathResult& path, TensorName name) {
  const VerdictRow* row = verdict_of(path, name);
  return row != nullptr && row->verdict == Verdict::kPassed;
}

std::string head_text(const TensorMetrics& metrics, std::size_t head) {
  const auto h = static_cast<std::size_t>(metrics.h);
  const bool of_keys = is_of_keys(metrics.tensor);
  const std::string text = fmt::format("{}head {}", of_keys ? "kv " : "", head % h);
  return metrics.b > 1 ? fmt::format("{} of batch {}", text, head / h) : text;
}

// Every head of `out` shows the gain that a path without the sink must show.
std::string sink_ignored(const PathResult& path, const HeadFacts& facts) {
  const TensorMetrics* out = find(path, TensorName::kOut);
  if (out == nullptr || !failed(path, TensorName::kOut) || out->heads.size() != facts.predicted_gain.size())
    return {};
  std::size_t loudest = 0;
  for (std::size_t head = 0; head < out->heads.size(); ++head) {
    const double predicted = facts.predicted_gain[head];
    if (!(std::fabs(out->heads[head].gain / predicted - 1) <= kAgreement)) return {};
    if (predicted > facts.predicted_gain[loudest]) loudest = head;
  }
  if (!(facts.predicted_gain[loudest] >= kVisibleGain)) return {};
  return fmt::format("{} ignores the sink: {} is {:.2f}x too large, {:.2f}x predicted from its sink mass",
                     path.path, head_text(*out, loudest), out->heads[loudest].gain,
                     facts.predicted_gain[loudest]);
}

// How far over the limit a tensor is; 0 where there is no verdict.
double severity(const PathResult& path, TensorName name) {
  const VerdictRow* row = verdict_of(path, name);
  return row != nullptr && row->limit > 0 ? row->value / row->limit : 0;
}

// Right out and dsinks with dq and dk far worse than dv is the mark of a dropped LSE gradient.
std::string lse_gradient_dropped(const PathResult& path) {
  using enum TensorName;
  constexpr double kFar = 10;
  if (!passed(path, kOut) || !passed(path, kDsinks) || !failed(path, kDq) || !failed(path, kDk)) return {};
  if (std::min(severity(path, kDq), severity(path, kDk)) < kFar * std::max(1.0, severity(path, kDv)))
    return {};
  return fmt::format(
      "{}: out and dsinks are right, dq and dk are far off, as when the gradient through the LSE is dropped",
      path.path);
}

std::string missing(const PathResult& path, const VerdictRow& row) {
  if (row.tensor == text(TensorName::kDsinks)) return fmt::format("{} gives the sink no gradient", path.path);
  return fmt::format("{} gives no {}", path.path, row.tensor);
}

// What is wrong with one tensor, the most telling thing first; empty when it is just too far off.
std::string tensor_sentence(const PathResult& path, const TensorMetrics& metrics, const VerdictRow& row) {
  const std::string_view name = text(metrics.tensor);
  const auto count = static_cast<std::int64_t>(metrics.heads.size());
  std::size_t lost = metrics.heads.size(), lost_heads = 0, infinite = metrics.heads.size(),
              unstable = metrics.heads.size();
  for (std::size_t head = 0; head < metrics.heads.size(); ++head) {
    const HeadMetrics& m = metrics.heads[head];
    if (m.all_zero && lost_heads++ == 0) lost = head;
    if (m.nonfinite_mismatch > 0 && infinite == metrics.heads.size()) infinite = head;
    if (!m.repeatable && unstable == metrics.heads.size()) unstable = head;
  }
  if (infinite < metrics.heads.size()) {
    const HeadMetrics& m = metrics.heads[infinite];
    return fmt::format(
        "{} {}: {} has {} NaN or infinite elements where the truth has none (or others), first at row {}",
        path.path, name, head_text(metrics, infinite), m.nonfinite_mismatch, m.nonfinite_at.row);
  }
  if (lost_heads == metrics.heads.size()) return fmt::format("{} {} is zero in every head", path.path, name);
  if (lost_heads > 0) {
    return fmt::format("{} {}: {} is lost, it is zero everywhere{}", path.path, name,
                       head_text(metrics, lost),
                       lost_heads > 1 ? fmt::format(" (and {} more)", lost_heads - 1) : "");
  }
  if (unstable < metrics.heads.size()) {
    return fmt::format("{} {}: {} differs from run to run", path.path, name, head_text(metrics, unstable));
  }
  const auto [low, high] =
      std::minmax_element(metrics.heads.begin(), metrics.heads.end(),
                          [](const HeadMetrics& a, const HeadMetrics& b) { return a.gain < b.gain; });
  if (metrics.tensor != TensorName::kLse && row.failed_heads == count &&
      high->gain - low->gain <= kSameFactor && std::fabs(low->gain - 1) > 2 * kSameFactor) {
    return fmt::format("{} {} is {:.3f}x the truth in every head", path.path, name,
                       0.5 * (low->gain + high->gain));
  }
  return {};
}

// "out", "out and dq", "out, dq and dv".
std::string list_text(const std::vector<const VerdictRow*>& rows) {
  std::string list;
  for (std::size_t i = 0; i < rows.size(); ++i)
    list += (i == 0 ? "" : i + 1 == rows.size() ? " and " : ", ") + rows[i]->tensor;
  return list;
}

// For tensors that are just too far off: all of them in one sentence, and where it is worst.
std::string over_the_limits(const PathResult& path, const std::vector<const VerdictRow*>& rows) {
  const VerdictRow& worst = **std::max_element(
      rows.begin(), rows.end(),
      [](const VerdictRow* a, const VerdictRow* b) { return a->value / a->limit < b->value / b->limit; });
  std::string where;
  for (const TensorMetrics& metrics : path.metrics) {
    if (text(metrics.tensor) == worst.tensor)
      where = head_text(metrics, static_cast<std::size_t>(worst.batch * metrics.h + worst.head));
  }
  if (worst.row >= 0) where += fmt::format(" row {}", worst.row);
  return fmt::format("{}: {} {} over the limits, farthest {} of {}: {} {:.3g}, limit {:.3g}", path.path,
                     list_text(rows), rows.size() == 1 ? "is" : "are", worst.tensor, where, worst.metric,
                     worst.value, worst.limit);
}

}  // namespace

std::vector<std::string> describe(const PathResult& path, const HeadFacts& facts, const AttentionShape&) {
  std::vector<std::string> sentences;
  const std::string ignored = sink_ignored(path, facts);
  if (!ignored.empty()) sentences.push_back(ignored);
  std::vector<const VerdictRow*> over;
  const std::string dropped = ignored.empty() ? lse_gradient_dropped(path) : std::string();
  if (!dropped.empty()) sentences.push_back(dropped);
  for (const VerdictRow& row : path.verdicts) {
    if (row.verdict != Verdict::kFailed) continue;
    if (row.metric == "missing") {
      sentences.push_back(missing(path, row));
      continue;
    }
    // One cause explains them all: nothing is gained by saying each.
    if (!ignored.empty() || !dropped.empty()) continue;
    std::string sentence;
    for (const TensorMetrics& metrics : path.metrics) {
      if (text(metrics.tensor) == row.tensor) sentence = tensor_sentence(path, metrics, row);
    }
    if (sentence.empty()) {
      over.push_back(&row);
    } else {
      sentences.push_back(sentence);
    }
  }
  if (!over.empty()) sentences.push_back(over_the_limits(path, over));
  return sentences;
}

}  // namespace sinkscope
