// SPDX-License-Identifier: Apache-2.0
// A change shared out among the causes that make it together.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace sinkscope {

struct CauseShares {
  std::vector<double> causes;  // in the order of their bits
  double rest = 0;             // roundings, and whatever no cause is about
};

inline constexpr int kMostCauses = 15;

// Shapley's average over all orders in which `causes` mistakes can be planted in exact attention, one after another:
// phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)), where v(S) = |g|^2 of exact attention with
// the mistakes of the bit mask S planted (Shapley 1953). v is called once per mask: 2^n gradients. `rest` is what the
// path, of squared norm `path2`, adds to all causes together: a last player that always comes last, for a path without
// its mistakes cannot be had. Everything sums to path2 - v(0). Throws std::invalid_argument for more than kMostCauses.
CauseShares shapley_shares(int causes, const std::function<double(std::uint32_t)>& v, double path2);

}  // namespace sinkscope
