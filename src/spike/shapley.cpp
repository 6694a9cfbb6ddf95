// SPDX-License-Identifier: Apache-2.0
#include "src/spike/shapley.hpp"

#include <bit>
#include <stdexcept>

#include "fmt/format.h"

namespace sinkscope {

CauseShares shapley_shares(int causes, const std::function<double(std::uint32_t)>& v, double path2) {
  if (causes < 0 || causes > kMostCauses)
    throw std::invalid_argument(fmt::format("{} causes, wanted at most {}", causes, kMostCauses));
  const std::uint32_t masks = 1U << causes;
  std::vector<double> values;
  for (std::uint32_t mask = 0; mask < masks; ++mask) values.push_back(v(mask));
  // weight[s] = s! (n - s - 1)! / n! = 1 / (n binomial(n - 1, s))
  std::vector<double> weights;
  double binomial = 1;
  for (int s = 0; s < causes; ++s) {
    weights.push_back(1 / (causes * binomial));
    binomial = binomial * (causes - 1 - s) / (s + 1);
  }
  CauseShares shares;
  for (int cause = 0; cause < causes; ++cause) {
    const std::uint32_t bit = 1U << cause;
    double share = 0;
    for (std::uint32_t mask = 0; mask < masks; ++mask) {
      if ((mask & bit) == 0)
        share += weights[static_cast<std::size_t>(std::popcount(mask))] * (values[mask | bit] - values[mask]);
    }
    shares.causes.push_back(share);
  }
  shares.rest = path2 - values.back();
  return shares;
}

}  // namespace sinkscope
