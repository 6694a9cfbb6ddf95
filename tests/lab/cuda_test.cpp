// SPDX-License-Identifier: Apache-2.0
// The spike lab on a GPU: every path that computes there, beside exact attention there.
#include "src/lab/lab.hpp"
#include "src/torch/module.hpp"
#include "tests/lab/relative_error.hpp"
#include "tests/require_gpu.hpp"

namespace sinkscope::lab {
namespace {

LabConfig on_gpu(bool packed) {
  LabConfig config;
  config.cuda = true;
  config.model = {.layers = 2, .width = 64, .hq = 4, .hkv = 2, .d = 64, .window = 20, .intermediate = 64};
  config.model.sink_mean = 1;
  config.text = {.path = "datasets/text", .batch = 3, .length = 100, .packed = packed};
  return config;
}

class LabOnGpu : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override { require_gpu(torch_module().cuda_unavailable); }
};

TEST_P(LabOnGpu, PathsAreAsFarFromExactAsTheyShouldBe) {
  const auto lab = open_lab(on_gpu(GetParam()));
  const StepSettings settings;
  lab->gradient(settings);
  const auto found =
      lab->replay({"sink_kernel", "flash_attention_2_sink", "eager", "eager_fp32", "flash_attention_2",
                   "flash_attention_2_rescaled", "fault:dsink_missing:sink_kernel"},
                  settings);
  for (const std::size_t healthy : {0, 1, 2, 3}) {
    EXPECT_GT(relative_error(found[healthy]), 1e-4) << found[healthy].path;
    EXPECT_LT(relative_error(found[healthy]), 2e-2) << found[healthy].path;
  }
  EXPECT_GT(relative_error(found[4]), 5e-2) << "no sink";
  EXPECT_GT(relative_error(found[5]), 2 * relative_error(found[1])) << "no gradient through the LSE";
}

TEST_P(LabOnGpu, ItLearns) {
  const auto lab = open_lab(on_gpu(GetParam()));
  StepSettings settings;
  settings.training_path = "sink_kernel";
  settings.learning_rate = 3e-3;
  const double before = lab->gradient(settings).loss;
  for (int i = 0; i < 60; ++i) {
    lab->apply(settings);
    lab->gradient(settings);
  }
  EXPECT_LT(lab->gradient(settings).loss, 0.8 * before);
}

INSTANTIATE_TEST_SUITE_P(, LabOnGpu, testing::Bool(),
                         [](const auto& of) { return of.param ? "packed" : "batch"; });

}  // namespace
}  // namespace sinkscope::lab
