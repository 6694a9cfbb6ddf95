// SPDX-License-Identifier: Apache-2.0
// A run of the kernel against the truth, in units of the rounding that the format makes unavoidable.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "reference/attention.hpp"
#include "tests/kernels/run_kernel.hpp"

namespace sinkscope::testing_kernel {

inline reference::Result truth_of(const reference::naive::Data& data, DType dtype) {
  return reference::attention(data.problem, data.inputs(), {unit_roundoff(dtype), underflow_unit(dtype)});
}

// The largest error in units of u sigma; non-finite elements must agree.
inline void expect_close(const std::vector<double>& got, const std::vector<double>& ref,
                         const std::vector<double>& sigma, double u, double limit, const std::string& what) {
  ASSERT_EQ(got.size(), ref.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == ref[i]) continue;
    ASSERT_LE(std::fabs(got[i] - ref[i]) / (u * sigma[i]), limit)
        << what << "[" << i << "] is " << got[i] << ", wanted " << ref[i];
  }
}

inline void expect_healthy(const KernelRun& run, const reference::Result& truth, DType dtype,
                           const std::string& what) {
  ASSERT_TRUE(run.forward.ok()) << what << ": " << run.forward.message;
  ASSERT_TRUE(run.backward.ok()) << what << ": " << run.backward.message;
  ASSERT_TRUE(run.guards_intact) << what;
  const double u = unit_roundoff(dtype);
  const double limit = dtype == DType::kFp32 ? 22 : 4.6;  // the default gate's z_max
  expect_close(run.out, truth.value.out, truth.sigma.out, u, limit, what + " out");
  expect_close(run.lse, truth.value.lse, truth.sigma.lse, 0x1p-24, 10, what + " lse");
  expect_close(run.dq, truth.value.dq, truth.sigma.dq, u, limit, what + " dq");
  expect_close(run.dk, truth.value.dk, truth.sigma.dk, u, limit, what + " dk");
  expect_close(run.dv, truth.value.dv, truth.sigma.dv, u, limit, what + " dv");
  expect_close(run.dsinks, truth.value.dsinks, truth.sigma.dsinks, u, dtype == DType::kFp32 ? 4.2 : 2.2,
               what + " dsinks");
}

// Relative L2.
inline double relative_error(const std::vector<double>& got, const std::vector<double>& ref) {
  double err2 = 0, ref2 = 0;
  for (std::size_t i = 0; i < ref.size(); ++i) {
    err2 += std::pow(got[i] - ref[i], 2);
    ref2 += std::pow(ref[i], 2);
  }
  return std::sqrt(err2 / ref2);
}

}  // namespace sinkscope::testing_kernel
