// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "fmt/format.h"

#include "src/bench/bench.hpp"

namespace sinkscope {
namespace {

// The value that a share of the sorted ones lies under, between neighbours in proportion.
double quantile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

nlohmann::json spread_of(std::vector<double> values) {
  if (values.empty()) throw std::invalid_argument("the spread of 0 values, wanted 1 at least");
  std::sort(values.begin(), values.end());
  return {{"median", quantile(values, 0.5)}, {"q1", quantile(values, 0.25)}, {"q3", quantile(values, 0.75)},
          {"min", values.front()},           {"max", values.back()},         {"rounds", values.size()}};
}

std::string spread_text(const nlohmann::json& spread) {
  return fmt::format("{:.4g} ({:.4g} to {:.4g})", spread["median"].get<double>(), spread["q1"].get<double>(),
                     spread["q3"].get<double>());
}

}  // namespace sinkscope
