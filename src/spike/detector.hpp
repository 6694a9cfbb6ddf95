// SPDX-License-Identifier: Apache-2.0
// Finds the spikes in a series of gradient norms, step by step.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

namespace sinkscope {

// A step is a spike where z = (log |g| - M) / clamp(1.4826 MAD, smallest_spread, largest_spread) is over the threshold; M and MAD are the
// median and the median absolute deviation of log |g| over the last `window` steps, this one left out (Iglewicz and
// Hoaglin's robust z-score). Spikes stay in the window: the median stands half of it being spikes, and a norm that stays
// high is a new level after half a window, not one spike after another.
struct SpikeRule {
  int window = 64;       // steps
  int first = 16;        // no step is judged before so many
  double threshold = 6;  // of z
  double smallest_spread =
      0.05;                     // of log |g|: what is under exp(6 * 0.05) = 1.35 times the median is no spike
  double largest_spread = 0.3;  // what is over exp(6 * 0.3) = 6 times the median always is
};

struct StepJudgement {
  double z = 0;       // NaN before `first` steps; +inf for a norm that is not finite
  double median = 0;  // of |g|, of the steps before
  double spread = 0;  // of log |g|, what z was divided by
  bool spike = false;
};

class SpikeDetector {
 public:
  explicit SpikeDetector(const SpikeRule& rule = {}) : rule_(rule) {}
  // Judges a step by those before it, then takes it into the window; a norm that is not finite is a spike and is not
  // taken.
  StepJudgement next(double norm);

 private:
  SpikeRule rule_;
  std::deque<double> logs_;
};

// The median norm of steps sampled now and then: of those in the last `window` steps before the one asked about.
class SampledMedian {
 public:
  explicit SampledMedian(int window = SpikeRule{}.window) : window_(window) {}
  void add(std::int64_t step, double norm);  // not finite: left out
  // NaN where the window has no sample.
  double before(std::int64_t step) const;

 private:
  int window_;
  std::deque<std::pair<std::int64_t, double>> samples_;
};

// The middle value, or the mean of the two in the middle. Throws std::invalid_argument for none.
double median(std::vector<double> values);

}  // namespace sinkscope
