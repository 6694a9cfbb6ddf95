// SPDX-License-Identifier: Apache-2.0
#include "src/explain/training.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fmt/format.h"

namespace sinkscope {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Norms operator+(const Norms& a, const Norms& b) {
  return {a.got + b.got, a.ref + b.ref, a.error + b.error};
}

// One head of a tensor over the batch.
HeadGradient measured(const TensorMetrics& metrics, std::int64_t head, const Consequences& consequences) {
  HeadGradient gradient{metrics.tensor, head, {}, kNan, kNan};
  double cross = 0;
  for (std::int64_t batch = 0; batch < metrics.b; ++batch) {
    const HeadMetrics& m = metrics.heads[static_cast<std::size_t>(batch * metrics.h + head)];
    const double got = m.norm_got * m.norm_got, ref = m.norm_ref * m.norm_ref;
    const double error = ref > 0 ? m.rel_l2 * m.rel_l2 * ref : got;
    const bool finite = m.nonfinite == 0;
    gradient.norm2 = gradient.norm2 + Norms{finite ? got : kNan, ref, finite ? error : kNan};
    cross += finite ? (ref > 0 ? m.gain * ref : 0) : kNan;
  }
  if (!(gradient.norm2.ref > 0)) return gradient;
  const auto along = consequences.along.find({metrics.tensor, head});
  gradient.gain = cross / gradient.norm2.ref;
  gradient.predicted_gain = 1 + (along == consequences.along.end() ? 0 : along->second / gradient.norm2.ref);
  return gradient;
}

std::vector<CauseShare> shares_of_causes(const Training& training, const Consequences& consequences) {
  std::vector<CauseShare> shares;
  double left = training.layer.change();
  for (const auto& [cause, change] : consequences.causes) {
    shares.push_back({cause, change / training.layer.change()});
    left -= change;
  }
  shares.push_back({"rounding", left / training.layer.change()});
  return shares;
}

std::vector<HeadShare> shares_of_heads(const AttentionShape& s, const Training& training,
                                       const Consequences& consequences) {
  std::vector<HeadShare> shares;
  for (std::int64_t head = 0; head < s.hq; ++head) shares.push_back({false, head, 0});
  for (std::int64_t head = 0; head < s.hkv; ++head) shares.push_back({true, head, 0});
  const auto of_keys = [&](std::int64_t head) -> double& {
    return shares[static_cast<std::size_t>(s.hq + head)].share;
  };
  for (const HeadGradient& g : training.heads) {
    if (!is_layer_gradient(g.tensor)) continue;
    double& change = is_of_keys(g.tensor) ? of_keys(g.head) : shares[static_cast<std::size_t>(g.head)].share;
    change += g.norm2.change();
  }
  for (const auto& [heads, change] : consequences.of_keys) {
    shares[static_cast<std::size_t>(heads.first)].share += change;
    of_keys(heads.second) -= change;
  }
  for (HeadShare& share : shares) share.share /= training.layer.change();
  std::stable_sort(shares.begin(), shares.end(),
                   [](const HeadShare& a, const HeadShare& b) { return a.share > b.share; });
  return shares;
}

// A path that was not asked for dsinks may give none; one that knows no sink cannot.
bool train_the_sinks(const Case& c, const Training& training, const std::vector<Finding>& findings,
                     bool dsinks_missing) {
  if (!c.sinks.given()) return true;
  const bool is_given = std::any_of(training.heads.begin(), training.heads.end(),
                                    [](const HeadGradient& g) { return g.tensor == TensorName::kDsinks; });
  if (is_given) return !(training.sinks.got == 0 && training.sinks.ref > 0);
  return !dsinks_missing && std::none_of(findings.begin(), findings.end(), [](const Finding& f) {
    return f.all_heads && (f.cause == "sink_ignored" || f.cause == "sink_zero_added");
  });
}

}  // namespace

Training training_of(const Case& c, const std::vector<TensorMetrics>& metrics,
                     const std::vector<Finding>& findings, const Consequences& consequences,
                     bool dsinks_missing) {
  Training training;
  for (const TensorMetrics& of : metrics) {
    if (of.tensor == TensorName::kLse) continue;
    for (std::int64_t head = 0; head < of.h; ++head) {
      training.heads.push_back(measured(of, head, consequences));
      const Norms& norms = training.heads.back().norm2;
      if (is_layer_gradient(of.tensor)) training.layer = training.layer + norms;
      if (of.tensor == TensorName::kDsinks) training.sinks = training.sinks + norms;
      training.given = training.given || of.tensor != TensorName::kOut;
    }
  }
  if (!training.given) return {};
  training.sinks_train = train_the_sinks(c, training, findings, dsinks_missing);
  const bool is_right = findings.front().cause == kNoCause;
  const double least = unit_roundoff(c.problem.shape.dtype) * training.layer.ref;
  training.changed = !is_right && std::fabs(training.layer.change()) > least;
  if (training.changed) {
    training.causes = shares_of_causes(training, consequences);
    training.shares = shares_of_heads(c.problem.shape, training, consequences);
  }
  put_into_words(training, findings);
  return training;
}

std::string head_text(const HeadShare& share) {
  return fmt::format("{}head {}", share.of_keys ? "kv " : "", share.head);
}

}  // namespace sinkscope
