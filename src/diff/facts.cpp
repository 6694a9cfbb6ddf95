// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/diff/diff.hpp"

namespace sinkscope {

HeadFacts head_facts(const Case& c, const Truth& truth) {
  const AttentionShape& s = c.problem.shape;
  const auto heads = static_cast<std::size_t>(s.b * s.hq);
  const auto rows = static_cast<std::size_t>(s.sq);
  const auto d = static_cast<std::size_t>(s.d);
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  HeadFacts facts{s.b, s.hq, {}, {}, {}, {}, {}, {}};
  for (auto* member : {&facts.p_sink_mean, &facts.p_sink_max, &facts.predicted_gain, &facts.lse_min,
                       &facts.lse_max, &facts.entropy}) {
    member->assign(heads, kNaN);
  }

  for (std::size_t head = 0; head < heads; ++head) {
    double p_sum = 0, p_max = 0, entropy = 0, weight = 0, gained = 0;
    double lse_min = kNaN, lse_max = kNaN;
    const auto real = static_cast<std::size_t>(s.real_rows(static_cast<std::int64_t>(head) / s.hq, s.sq));
    for (std::size_t i = head * rows; i < head * rows + real; ++i) {
      const double p = truth.p_sink[i];
      p_sum += p;
      p_max = std::max(p_max, p);
      entropy += truth.entropy[i];
      if (const double lse = truth.value.lse[i]; std::isfinite(lse)) {
        lse_min = std::fmin(lse_min, lse);
        lse_max = std::fmax(lse_max, lse);
      }
      double out2 = 0;
      for (std::size_t column = 0; column < d; ++column) {
        const double out = truth.value.out[i * d + column];
        out2 += out * out;
      }
      weight += out2;
      if (p < 1) gained += out2 / (1 - p);
    }
    facts.p_sink_mean[head] = p_sum / static_cast<double>(std::max<std::size_t>(1, real));
    facts.p_sink_max[head] = p_max;
    facts.entropy[head] = entropy / static_cast<double>(std::max<std::size_t>(1, real));
    facts.lse_min[head] = lse_min;
    facts.lse_max[head] = lse_max;
    facts.predicted_gain[head] = weight > 0 ? gained / weight : 1;
  }
  return facts;
}

}  // namespace sinkscope
