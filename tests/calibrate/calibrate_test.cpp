// SPDX-License-Identifier: Apache-2.0
// A small calibration: the default gate holds on healthy paths and catches every planted fault.
#include "src/calibrate/calibrate.hpp"

#include "gtest/gtest.h"

#include "src/capture/capture.hpp"
#include "src/core/error.hpp"

namespace sinkscope {
namespace {

TEST(Calibration, TheDefaultGateHolds) {
  const Gate gate = read_gate("reports/gates/default.toml");
  CalibrateOptions options;
  options.seeds = 2;
  options.paths = {"sink_kernel"};
  options.captures = captures_at("datasets/captures");
  const Calibration calibration = calibrate(gate, options);

  EXPECT_EQ(calibration.cases, 2 * 3 * 6 + 5);
  EXPECT_TRUE(holds(calibration, gate)) << to_markdown(calibration, gate, options, "test");
  for (const auto& [dtype, faults] : calibration.faults) {
    EXPECT_EQ(faults.size(), 7U) << name_of(dtype);
    for (const auto& [name, ratios] : faults) {
      for (const double ratio : ratios) EXPECT_GT(ratio, 1) << name_of(dtype) << " " << name;
    }
  }

  Gate strict = gate;
  strict.formats[DType::kBf16].tensors.z_rms = 0.5;
  EXPECT_FALSE(holds(calibration, strict));
}

TEST(Calibration, NeedsItsPaths) {
  const Gate gate = read_gate("reports/gates/default.toml");
  CalibrateOptions options;
  options.seeds = 1;
  options.paths = {"sink_kernel", "nothing"};
  EXPECT_THROW(calibrate(gate, options), InputError);
}

}  // namespace
}  // namespace sinkscope
