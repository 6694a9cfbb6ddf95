// SPDX-License-Identifier: Apache-2.0
#include "src/spike/detector.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace sinkscope {
namespace {

constexpr double kNormalPerMad =
    1.4826;  // the standard deviation of a normal distribution in units of its MAD

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) throw std::invalid_argument("the median of no values");
  const auto upper = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), upper, values.end());
  if (values.size() % 2 == 1) return *upper;
  return (*std::max_element(values.begin(), upper) + *upper) / 2;
}

StepJudgement SpikeDetector::next(double norm) {
  StepJudgement judged = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::quiet_NaN(),
                          rule_.smallest_spread, false};
  const double log_norm = std::log(std::max(norm, std::numeric_limits<double>::min()));
  if (logs_.size() >= static_cast<std::size_t>(rule_.first)) {
    const double middle = median({logs_.begin(), logs_.end()});
    std::vector<double> distances;
    for (const double log : logs_) distances.push_back(std::abs(log - middle));
    judged.spread =
        std::clamp(kNormalPerMad * median(std::move(distances)), rule_.smallest_spread, rule_.largest_spread);
    judged.median = std::exp(middle);
    judged.z = (log_norm - middle) / judged.spread;
    judged.spike = judged.z > rule_.threshold;
  }
  if (!std::isfinite(norm)) {
    judged.z = std::numeric_limits<double>::infinity();
    judged.spike = true;
    return judged;
  }
  logs_.push_back(log_norm);
  if (logs_.size() > static_cast<std::size_t>(rule_.window)) logs_.pop_front();
  return judged;
}

void SampledMedian::add(std::int64_t step, double norm) {
  if (!std::isfinite(norm)) return;
  samples_.emplace_back(step, norm);
  while (samples_.front().first < step - window_) samples_.pop_front();
}

double SampledMedian::before(std::int64_t step) const {
  std::vector<double> norms;
  for (const auto& [when, norm] : samples_) {
    if (when >= step - window_ && when < step) norms.push_back(norm);
  }
  return norms.empty() ? std::numeric_limits<double>::quiet_NaN() : median(std::move(norms));
}

}  // namespace sinkscope
