// SPDX-License-Identifier: Apache-2.0
// A path's training in a sentence and a recommendation.
#include <algorithm>
#include <cmath>
#include <vector>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/explain/training.hpp"

namespace sinkscope {
namespace {

constexpr std::size_t kMostNamed = 3;  // heads or causes in a sentence

bool is_rounding(const Finding& finding) {
  return finding.cause.starts_with("rounding:");
}

bool is_of_layer(const Finding& finding) {
  return finding.cause != kNoCause &&
         std::any_of(finding.tensors.begin(), finding.tensors.end(), is_layer_gradient);
}

bool is_of_sinks(const Finding& finding) {
  return std::find(finding.tensors.begin(), finding.tensors.end(), TensorName::kDsinks) !=
         finding.tensors.end();
}

// "a, b and c".
std::string listed(const std::vector<std::string>& items) {
  std::string text;
  for (std::size_t i = 0; i < items.size(); ++i)
    text += (i == 0 ? "" : i + 1 == items.size() ? " and " : ", ") + items[i];
  return text;
}

// What is wrong: mistakes; only where there is none, roundings.
std::string causes_text(const std::vector<Finding>& findings) {
  std::vector<std::string> mistakes, roundings;
  bool unknown = false;
  for (const Finding& f : findings) {
    unknown = unknown || f.cause == kUnknownCause;
    if (f.cause == kNoCause || f.cause == kUnknownCause) continue;
    const std::string where = f.all_heads ? "" : fmt::format(" ({})", scope_text(f));
    (is_rounding(f) ? roundings : mistakes).push_back(f.sentence + where);
  }
  std::vector<std::string>& named = mistakes.empty() ? roundings : mistakes;
  if (named.size() > kMostNamed) {
    const std::size_t more = named.size() - (kMostNamed - 1);
    named.resize(kMostNamed - 1);
    named.push_back(fmt::format("{} more mistakes", more));
  }
  if (unknown)
    named.emplace_back(named.empty() ? "the cause is not known" : "there is more that is not known");
  return listed(named);
}

// "heads 1 and 3", "heads 0 to 7", or with key/value heads among them "head 1 and kv head 0".
std::string heads_text(const std::vector<HeadShare>& shares) {
  std::vector<std::int64_t> query_heads;
  std::vector<std::string> names;
  for (const HeadShare& share : shares) {
    names.push_back(head_text(share));
    if (!share.of_keys) query_heads.push_back(share.head);
  }
  if (query_heads.size() < names.size() || names.size() == 1) return listed(names);
  std::sort(query_heads.begin(), query_heads.end());
  if (query_heads.size() > kMostNamed) return "heads " + numbers_text(query_heads);
  names.clear();
  for (const std::int64_t head : query_heads) names.push_back(std::to_string(head));
  return "heads " + listed(names);
}

// "63 % of the excess comes from head 6"; `shares` has the largest first and sums to 1.
std::string blame_text(const std::vector<HeadShare>& shares, const char* kind) {
  const HeadShare& first = shares.front();
  const HeadShare& last = shares.back();
  if (first.share > 1 && last.share < -0.05) {
    return fmt::format("{} makes {:.0f} % of the {}, of which {} takes {:.0f} % back", head_text(first),
                       100 * first.share, kind, head_text(last), -100 * last.share);
  }
  if (first.share >= 0.5)
    return fmt::format("{:.0f} % of the {} comes from {}", 100 * first.share, kind, head_text(first));
  // Heads with less than a hundredth, or that make up for others, are not counted.
  const auto counted =
      std::find_if(shares.begin(), shares.end(), [](const HeadShare& s) { return s.share < 0.01; });
  const bool alike = (counted - 1)->share * 2 >= first.share;
  if (alike) return fmt::format("the {} comes from {} alike", kind, heads_text({shares.begin(), counted}));
  constexpr double kMost = 0.75;
  double sum = 0;
  std::size_t count = 0;
  while (sum < kMost && count < std::min(kMostNamed, shares.size())) sum += shares[count++].share;
  if (sum >= kMost)
    return fmt::format("{:.0f} % of the {} comes from {}", 100 * sum, kind,
                       heads_text({shares.begin(), shares.begin() + static_cast<std::ptrdiff_t>(count)}));
  return fmt::format("the {} spreads over {} heads, {} with most, {:.0f} %", kind, counted - shares.begin(),
                     head_text(first), 100 * first.share);
}

// "1.4 % larger than" near 1, "9.81 times" else.
std::string ratio_text(double ratio) {
  if (ratio > 0.5 && ratio < 2)
    return fmt::format("{:.2g} % {} than", 100 * std::fabs(ratio - 1), ratio > 1 ? "larger" : "smaller");
  return fmt::format("{:.3g} times", ratio);
}

std::string norm_text(const Training& training, bool is_wrong) {
  const Norms& layer = training.layer;
  if (!training.changed) {
    return fmt::format("the squared gradient norm is that of exact attention to within rounding{}",
                       is_wrong ? ", the gradients themselves are not" : "");
  }
  if (!(layer.ref > 0)) return "gradients are not zero where those of exact attention are";
  return fmt::format("the squared gradient norm is {} that of exact attention, and {}",
                     ratio_text(layer.got / layer.ref),
                     blame_text(training.shares, layer.change() > 0 ? "excess" : "loss"));
}

std::string error_text(const Training& training) {
  if (!(training.layer.ref > 0)) return "";
  return fmt::format(" (|g - g_ref|^2 is {:.2g} |g_ref|^2)", training.layer.error / training.layer.ref);
}

std::string sinks_text(const Training& training, const std::vector<Finding>& findings) {
  if (!training.sinks_train) return "; the sinks do not train";
  if (std::none_of(findings.begin(), findings.end(), is_of_sinks) || !(training.sinks.ref > 0)) return "";
  const double error = std::sqrt(training.sinks.error / training.sinks.ref);
  return fmt::format("; the sinks' gradient is off by {:.2g} {} its norm", error, error < 1 ? "of" : "times");
}

std::string not_finite_text(const Training& training) {
  std::vector<std::string> names;
  std::size_t count = 0;
  for (const HeadGradient& g : training.heads) {
    if (g.tensor == TensorName::kOut || std::isfinite(g.norm2.got)) continue;
    if (++count <= kMostNamed)
      names.push_back(fmt::format("{} of {}", text(g.tensor), head_text({is_of_keys(g.tensor), g.head, 0})));
  }
  return fmt::format(
      "{}{} {} NaN or infinite values: one step with them ruins the weights", fmt::join(names, ", "),
      count > kMostNamed ? fmt::format(" and {} more", count - kMostNamed) : "", count == 1 ? "has" : "have");
}

std::string sentence_of(const Training& training, const std::vector<Finding>& findings) {
  if (findings.front().cause == kNoCause)
    return "gradients are those of exact attention to within rounding" + error_text(training);
  const std::string causes = causes_text(findings);
  if (!std::isfinite(training.layer.got) || !std::isfinite(training.sinks.got))
    return fmt::format("{}: {}", causes, not_finite_text(training));
  const std::string sinks = sinks_text(training, findings);
  if (std::none_of(findings.begin(), findings.end(), is_of_layer) && !training.changed)
    return fmt::format("{}: the gradients of q, k and v are right{}", causes, sinks);
  const bool is_wrong = std::any_of(findings.begin(), findings.end(),
                                    [](const Finding& f) { return is_of_layer(f) && !is_rounding(f); });
  return fmt::format("{}: {}{}{}", causes, norm_text(training, is_wrong), error_text(training), sinks);
}

}  // namespace

void put_into_words(Training& training, const std::vector<Finding>& findings) {
  training.sentence = sentence_of(training, findings);
  std::vector<std::string> fixes;
  for (const Finding& f : findings) {
    const bool is_new = std::find(fixes.begin(), fixes.end(), f.fix) == fixes.end();
    if (is_new && !f.fix.empty() && fixes.size() < kMostNamed) fixes.push_back(f.fix);
  }
  training.recommendation = fixes.empty() || findings.front().cause == kNoCause
                                ? "nothing to change"
                                : fmt::format("{}", fmt::join(fixes, "; "));
}

}  // namespace sinkscope
