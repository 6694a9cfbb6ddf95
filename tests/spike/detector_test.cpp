// SPDX-License-Identifier: Apache-2.0
// Planted spikes are found, noise seldom alarms, and a new level is not one spike after another.
#include "src/spike/detector.hpp"

#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace sinkscope {
namespace {

constexpr double kNoise = 0.2;  // standard deviation of log |g|

// Standard normal numbers by Box and Muller's method: the same with every standard library.
class Normal {
 public:
  explicit Normal(std::uint64_t seed) : bits_(seed) {}
  double uniform() { return (static_cast<double>(bits_() >> 11) + 0.5) * 0x1p-53; }
  double next() { return std::sqrt(-2 * std::log(uniform())) * std::cos(2 * M_PI * uniform()); }

 private:
  std::mt19937_64 bits_;
};

TEST(Detector, FindsPlantedSpikesAndNothingElse) {
  Normal noise(1);
  SpikeDetector detector;
  for (int step = 0; step < 2000; ++step) {
    const bool planted = step % 100 == 50;
    const double size = planted ? 10 * kNoise : kNoise * noise.next();
    const StepJudgement judged = detector.next(3 * std::exp(size));
    EXPECT_EQ(judged.spike, planted && step >= 16) << "step " << step << ", z " << judged.z;
    if (step >= 64) {
      EXPECT_NEAR(judged.median, 3, 0.5);
    }
  }
}

TEST(Detector, AlarmsOnNoiseAreAsRareAsTheReadmeSays) {
  constexpr int kSteps = 400000;
  Normal noise(2);
  SpikeDetector normal, laplace;
  int normal_alarms = 0, laplace_alarms = 0;
  for (int step = 0; step < kSteps; ++step) {
    normal_alarms += normal.next(std::exp(kNoise * noise.next())).spike ? 1 : 0;
    const double tail = -std::log(noise.uniform()) * (noise.uniform() < 0.5 ? -1 : 1);
    laplace_alarms += laplace.next(std::exp(kNoise * tail)).spike ? 1 : 0;
  }
  RecordProperty("normal_alarms", normal_alarms);
  RecordProperty("laplace_alarms", laplace_alarms);
  EXPECT_LE(normal_alarms, kSteps / 100000);
  EXPECT_LE(laplace_alarms, kSteps / 400);
  EXPECT_GE(laplace_alarms, kSteps / 700) << "the README states the rate too high";
}

TEST(Detector, ACalmRunDoesNotAlarmAtATrifle) {
  SpikeDetector detector;
  for (int step = 0; step < 100; ++step) detector.next(1);
  EXPECT_FALSE(detector.next(1.34).spike);
  EXPECT_TRUE(detector.next(1.36).spike);
}

// Norms that scatter by e either way: six of their own spreads would be 400 times the median.
TEST(Detector, AWildRunDoesNotHideItsSpikes) {
  SpikeDetector detector;
  for (int step = 0; step < 64; ++step) detector.next(std::exp(step % 2 == 0 ? 1 : -1));
  EXPECT_FALSE(detector.next(5.9).spike);
  EXPECT_TRUE(detector.next(6.5).spike);
}

TEST(Detector, ANewLevelBecomesUsualAfterHalfAWindow) {
  SpikeDetector detector;
  for (int step = 0; step < 64; ++step) detector.next(1);
  int spikes = 0;
  for (int step = 0; step < 64; ++step) spikes += detector.next(5).spike ? 1 : 0;
  EXPECT_GE(spikes, 30);
  EXPECT_LE(spikes, 33);
}

TEST(Detector, JudgesByStepsBeforeOnlyAndNotTooEarly) {
  SpikeDetector detector;
  for (int step = 0; step < 15; ++step) EXPECT_TRUE(std::isnan(detector.next(2).z));
  EXPECT_FALSE(detector.next(1000).spike) << "the 16th step has 15 before it";
  const StepJudgement judged = detector.next(1000);
  EXPECT_TRUE(judged.spike);
  EXPECT_DOUBLE_EQ(judged.median, 2);
}

TEST(Detector, ANormThatIsNotFiniteIsASpikeAndLeavesTheMedianAlone) {
  SpikeDetector detector;
  for (int step = 0; step < 20; ++step) detector.next(2);
  EXPECT_TRUE(detector.next(std::numeric_limits<double>::quiet_NaN()).spike);
  EXPECT_TRUE(detector.next(std::numeric_limits<double>::infinity()).spike);
  EXPECT_DOUBLE_EQ(detector.next(2).median, 2);
  EXPECT_FALSE(detector.next(0).spike);
}

TEST(SampledMedian, TakesTheSamplesOfTheWindowBefore) {
  SampledMedian exact(10);
  EXPECT_TRUE(std::isnan(exact.before(0)));
  for (const auto& [step, norm] : {std::pair{0, 1.0}, {4, 2.0}, {8, 9.0}, {12, 4.0}}) exact.add(step, norm);
  EXPECT_DOUBLE_EQ(exact.before(12), 5.5) << "of steps 4 and 8";
  EXPECT_DOUBLE_EQ(exact.before(13), 4) << "of steps 4, 8 and 12";
  exact.add(13, std::numeric_limits<double>::infinity());
  EXPECT_DOUBLE_EQ(exact.before(14), 4);
}

}  // namespace
}  // namespace sinkscope
