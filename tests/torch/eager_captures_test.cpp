// SPDX-License-Identifier: Apache-2.0
// The eager path reproduces what transformers itself recorded on a GPU, in every capture.
#include <cmath>
#include <string>

#include "gtest/gtest.h"

#include "src/capture/capture.hpp"
#include "src/torch/module.hpp"

namespace sinkscope {
namespace {

constexpr double kLimit = 1e-3;  // a third of eager's own error

const Path& torch_path(const std::string& name) {
  for (const Path& path : torch_module().paths) {
    if (path.name == name) return path;
  }
  throw std::runtime_error("no path " + name + ": " + torch_module().unavailable);
}

// Relative L2 between two tensors, the worst over heads.
double worst_distance(const Tensor& got, const Tensor& ref, std::int64_t heads) {
  const std::vector<double> a = got.widened(), b = ref.widened();
  const std::size_t per_head = a.size() / static_cast<std::size_t>(heads);
  double worst = 0;
  for (std::size_t head = 0; head < static_cast<std::size_t>(heads); ++head) {
    double err2 = 0, ref2 = 0;
    for (std::size_t i = head * per_head; i < (head + 1) * per_head; ++i) {
      err2 += (a[i] - b[i]) * (a[i] - b[i]);
      ref2 += b[i] * b[i];
    }
    worst = std::fmax(worst, std::sqrt(err2 / ref2));
  }
  return worst;
}

class RecordedEager : public testing::TestWithParam<std::string> {};

TEST_P(RecordedEager, IsReproduced) {
  Problem problem;
  problem.capture = "datasets/captures/" + GetParam() + ".safetensors";
  const Case c = load_capture(problem);
  const Outputs& recorded = c.recorded.at("eager");
  const Outputs got = torch_path("eager").run(c, {2}).outputs;

  const AttentionShape& s = c.problem.shape;
  EXPECT_LE(worst_distance(got.out, recorded.out, s.hq), kLimit);
  EXPECT_LE(worst_distance(got.dq, recorded.dq, s.hq), kLimit);
  EXPECT_LE(worst_distance(got.dk, recorded.dk, s.hkv), kLimit);
  EXPECT_LE(worst_distance(got.dv, recorded.dv, s.hkv), kLimit);
  EXPECT_LE(worst_distance(got.dsinks, recorded.dsinks, 1), kLimit);
}

INSTANTIATE_TEST_SUITE_P(Captures, RecordedEager,
                         testing::Values("calm_layer0", "calm_layer1", "loud_layer6", "loud_layer7"),
                         [](const auto& capture) { return capture.param; });

}  // namespace
}  // namespace sinkscope
