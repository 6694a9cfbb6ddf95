// SPDX-License-Identifier: Apache-2.0
// The figures of datasets/captures/README.md, which an independent float64 program computed, come out of this
// project's own reader, truth and diff engine.
#include <array>
#include <cmath>
#include <string>

#include "gtest/gtest.h"

#include "src/capture/capture.hpp"
#include "src/diff/diff.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {
namespace {

using PerHead = std::array<double, 8>;

class CalmLayer1 : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    Problem problem;
    problem.capture = "datasets/captures/calm_layer1.safetensors";
    case_ = new Case(load_capture(problem));
    truth_ = new Truth(compute_truth(*case_));
  }
  static void TearDownTestSuite() {
    delete truth_;
    delete case_;
  }

  // Every figure is printed with three digits, so it holds to half a unit of the third.
  static void expect_relative_l2(const std::string& name, TensorName tensor, const PerHead& wanted) {
    const TensorMetrics metrics = measure(*case_, *truth_, tensor, case_->recorded.at(name)[tensor]);
    ASSERT_EQ(metrics.heads.size(), wanted.size());
    for (std::size_t head = 0; head < wanted.size(); ++head) {
      EXPECT_NEAR(metrics.heads[head].rel_l2 / wanted[head], 1, 0.005)
          << name << " " << text(tensor) << " head " << head;
    }
  }

  static inline const Case* case_ = nullptr;
  static inline const Truth* truth_ = nullptr;
};

TEST_F(CalmLayer1, SinkMassIsAsPublished) {
  const PerHead wanted = {0.4211, 0.2013, 0.0341, 0.0262, 0.4362, 0.3311, 0.9075, 0.3060};
  const HeadFacts facts = head_facts(*case_, *truth_);
  for (std::size_t head = 0; head < wanted.size(); ++head) {
    EXPECT_NEAR(facts.p_sink_mean[head], wanted[head], 0.5e-4) << "head " << head;
  }
}

TEST_F(CalmLayer1, EagerErrorIsAsPublished) {
  expect_relative_l2("eager", TensorName::kOut,
                     {2.93e-3, 2.98e-3, 4.44e-3, 3.76e-3, 2.27e-3, 2.73e-3, 3.77e-3, 2.92e-3});
  expect_relative_l2("eager", TensorName::kDq,
                     {6.36e-3, 7.11e-3, 1.73e-2, 9.72e-3, 9.75e-3, 5.54e-3, 5.26e-3, 5.03e-3});
}

TEST_F(CalmLayer1, SinklessFlashAttentionErrorIsAsPublished) {
  expect_relative_l2("flash_attention_2", TensorName::kOut,
                     {0.378, 0.244, 0.0680, 0.0569, 0.414, 0.488, 6.17, 0.615});
  expect_relative_l2("flash_attention_2", TensorName::kDq,
                     {0.679, 0.919, 0.233, 0.357, 1.62, 1.48, 3.47, 1.10});
}

TEST_F(CalmLayer1, GainOfASinklessPathIsPredictedFromTheSinkMass) {
  const HeadFacts facts = head_facts(*case_, *truth_);
  const TensorMetrics metrics =
      measure(*case_, *truth_, TensorName::kOut, case_->recorded.at("flash_attention_2").out);

  EXPECT_NEAR(facts.predicted_gain[6], 3.48, 0.005);
  for (std::size_t head = 0; head < 8; ++head) {
    EXPECT_NEAR(metrics.heads[head].gain / facts.predicted_gain[head], 1, 0.005) << "head " << head;
  }
}

}  // namespace
}  // namespace sinkscope
