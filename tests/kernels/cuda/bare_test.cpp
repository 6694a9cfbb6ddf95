// SPDX-License-Identifier: Apache-2.0
// Every feature of the CUDA backend, small, on memory that nobody wrote before and with nothing beside it, so that
// compute-sanitizer sees each access that it should not make (tools/gpu_check runs this program under its tools).
// By itself it shows that no bit depends on what the memory held.
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "src/inputs/case.hpp"
#include "src/problem/problem.hpp"
#include "tests/kernels/cuda/gpu_place.hpp"
#include "tests/kernels/run_kernel.hpp"

namespace sinkscope::testing_kernel {
namespace {

reference::naive::Data data_of(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  reference::naive::Data data;
  data.problem = {s.b, s.hq, s.hkv, s.sq, s.sk, s.d, s.causal, s.window, s.scale, s.cu_q(), s.cu_k()};
  data.q = c.q.widened();
  data.k = c.k.widened();
  data.v = c.v.widened();
  data.dout = c.dout.widened();
  if (c.sinks.given()) data.sinks = c.sinks.widened();
  if (c.dlse.given()) data.dlse = c.dlse.widened();
  return data;
}

RunOptions options_of(const Problem& problem) {
  RunOptions options;
  options.sink_dtype = problem.sink_dtype;
  options.bshd = problem.layout == Layout::kBshd;
  options.residual = problem.residual;
  options.want_dq = problem.grads.q;
  options.want_dk = problem.grads.k;
  options.want_dv = problem.grads.v;
  options.want_dsinks = problem.grads.s && problem.sink != SinkKind::kNone;
  return options;
}

class CudaBare : public testing::TestWithParam<Problem> {
 protected:
  void SetUp() override { require_gpu(sa::cuda::available().message); }
};

TEST_P(CudaBare, GivesTheBitsOfGuardedMemory) {
  const Problem& problem = GetParam();
  const reference::naive::Data data = data_of(generate_case(problem, "bare"));
  const RunOptions options = options_of(problem);
  const KernelRun bare = run_kernel_at(GpuPlace{.bare = true}, data, problem.shape.dtype, options);
  const KernelRun guarded = run_kernel_at(GpuPlace{}, data, problem.shape.dtype, options);

  ASSERT_TRUE(bare.forward.ok()) << bare.forward.message;
  ASSERT_TRUE(bare.backward.ok()) << bare.backward.message;
  ASSERT_TRUE(guarded.guards_intact) << to_string(problem);
  EXPECT_EQ(bare.bits, guarded.bits) << to_string(problem);
}

INSTANTIATE_TEST_SUITE_P(Sanitizer, CudaBare, testing::ValuesIn(read_suite("datasets/suites/sanitizer.txt")),
                         [](const auto& of) { return "seed" + std::to_string(of.param.seed); });

}  // namespace
}  // namespace sinkscope::testing_kernel
