// SPDX-License-Identifier: Apache-2.0
// What two implementations recorded for four real captures: one ignores the sink in every head, the other is right but
// for its roundings.
#include <string>

#include "gtest/gtest.h"

#include "src/capture/capture.hpp"
#include "src/compare/compare.hpp"

namespace sinkscope {
namespace {

std::vector<Finding> explained(const std::string& capture, const std::string& path) {
  Problem problem;
  problem.capture = "datasets/captures/" + capture + ".safetensors";
  CompareOptions options;
  options.paths = {path};
  options.explain = true;
  return compare_case(load_capture(problem), read_gate("reports/gates/default.toml"), options)
      .paths.at(0)
      .explanation.findings;
}

constexpr std::array kCaptures = {"calm_layer0", "calm_layer1", "loud_layer6", "loud_layer7"};

TEST(Captures, FlashAttentionIgnoresTheSinkInEveryHead) {
  for (const char* capture : kCaptures) {
    const std::vector<Finding> findings = explained(capture, "recorded.flash_attention_2");
    ASSERT_EQ(findings.size(), 1U) << capture << " " << findings.back().cause;
    EXPECT_EQ(findings[0].cause, "sink_ignored") << capture;
    EXPECT_TRUE(findings[0].all_heads) << capture;
    EXPECT_EQ(findings[0].tensors.size(), 5U) << capture << ": it recorded no dsinks";
    EXPECT_GT(findings[0].share, 0.8) << capture;
  }
}

TEST(Captures, EagerIsRightButForItsSoftmaxInBf16) {
  for (const char* capture : kCaptures) {
    const std::vector<Finding> findings = explained(capture, "recorded.eager");
    ASSERT_EQ(findings.size(), 1U) << capture << " " << findings.back().cause;
    EXPECT_EQ(findings[0].cause, "rounding:softmax_bf16") << capture << " " << scope_text(findings[0]);
    EXPECT_TRUE(findings[0].all_heads) << capture;
    EXPECT_GT(findings[0].share, 0.98) << capture;
  }
}

}  // namespace
}  // namespace sinkscope
