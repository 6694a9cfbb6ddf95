// SPDX-License-Identifier: Apache-2.0
// The CPU backend against the truth, in units of the rounding that the format makes unavoidable.
#include <cmath>
#include <limits>
#include <string>

#include "gtest/gtest.h"

#include "tests/kernels/healthy.hpp"
#include "tests/kernels/run_kernel.hpp"

namespace sinkscope::testing_kernel {
namespace {

using reference::Problem;
using reference::naive::Data;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct IsaCase {
  sa::cpu::Isa isa;
  DType dtype;
};

std::string name_of_case(const testing::TestParamInfo<IsaCase>& info_of) {
  const std::string isa = info_of.param.isa == sa::cpu::Isa::kAvx2     ? "avx2"
                          : info_of.param.isa == sa::cpu::Isa::kAvx512 ? "avx512"
                                                                       : "amx";
  return isa + "_" + std::string(name_of(info_of.param.dtype));
}

class EveryIsa : public testing::TestWithParam<IsaCase> {
 protected:
  void SetUp() override {
    Data data = reference::naive::random_data({.sq = 1, .sk = 1, .d = 1}, 1);
    RunOptions options;
    options.cpu.isa = GetParam().isa;
    const KernelRun run = run_kernel(data, GetParam().dtype, options);
    if (!run.forward.ok()) GTEST_SKIP() << run.forward.message;
  }

  void check(Problem problem, const std::string& what, std::vector<double> sinks = {}, bool dlse = true,
             RunOptions options = {}) const {
    problem.scale = 1 / std::sqrt(static_cast<double>(problem.d));
    Data data = reference::naive::random_data(problem, 17, true, dlse);
    if (!sinks.empty()) data.sinks = std::move(sinks);
    round_inputs(data, GetParam().dtype);
    options.cpu.isa = GetParam().isa;
    // The truth sees the scale that the kernel's fp32 parameter holds.
    data.problem.scale = static_cast<double>(static_cast<float>(problem.scale));
    expect_healthy(run_kernel(data, GetParam().dtype, options), truth_of(data, GetParam().dtype),
                   GetParam().dtype, what);
  }
};

TEST_P(EveryIsa, LengthsRoundTheTiles) {
  for (const std::int64_t s : {1, 2, 31, 33, 63, 64, 65, 127, 128, 129, 257})
    check({.hq = 2, .hkv = 2, .sq = s, .sk = s}, "s" + std::to_string(s));
}

TEST_P(EveryIsa, HeadDims) {
  for (const std::int64_t d : {1, 8, 16, 40, 64, 96, 128, 256})
    check({.hq = 2, .hkv = 1, .sq = 70, .sk = 70, .d = d}, "d" + std::to_string(d));
}

TEST_P(EveryIsa, GroupsOfHeads) {
  for (const std::int64_t hkv : {1, 2, 4, 8})
    check({.b = 2, .hq = 8, .hkv = hkv, .sq = 65, .sk = 65}, "hkv" + std::to_string(hkv));
  check({.hq = 40, .hkv = 20, .sq = 33, .sk = 33, .d = 16}, "hkv20");
  check({.hq = 70, .hkv = 1, .sq = 33, .sk = 33, .d = 16}, "hq70");
}

TEST_P(EveryIsa, Windows) {
  for (const std::int64_t window : {1, 16, 100, 128, 129, 1000}) {
    check({.hq = 2, .hkv = 1, .sq = 300, .sk = 300, .window = window}, "w" + std::to_string(window));
  }
}

TEST_P(EveryIsa, FullAndUnequalLengths) {
  check({.hq = 2, .hkv = 1, .sq = 150, .sk = 150, .causal = false}, "full");
  check({.hq = 2, .hkv = 1, .sq = 50, .sk = 210}, "more keys");
  check({.hq = 2, .hkv = 1, .sq = 210, .sk = 50}, "rows without keys");
  check({.hq = 2, .hkv = 1, .sq = 210, .sk = 50, .window = 20}, "rows without keys, window");
  check({.hq = 2, .hkv = 1, .sq = 50, .sk = 210, .causal = false}, "full, more keys");
}

TEST_P(EveryIsa, Documents) {
  check({.hq = 4, .hkv = 2, .sq = 200, .sk = 200, .cu_q = {0, 70, 70, 71, 200}, .cu_k = {0, 70, 70, 71, 200}},
        "packed");
  check({.hq = 2,
         .hkv = 1,
         .sq = 100,
         .sk = 180,
         .window = 30,
         .cu_q = {0, 40, 60, 60, 100},
         .cu_k = {0, 100, 100, 130, 180}},
        "unequal keys");
  check({.hq = 2,
         .hkv = 1,
         .sq = 1200,
         .sk = 1200,
         .cu_q = {0, 1000, 1010, 1200},
         .cu_k = {0, 1000, 1010, 1200}},
        "across pieces");
}

TEST_P(EveryIsa, Sinks) {
  const Problem problem{.hq = 8, .hkv = 2, .sq = 130, .sk = 130};
  check(problem, "extreme", {-kInfinity, kInfinity, 100, -100, 1e4, -1e4, 0, 5});
  check(problem, "extreme without dlse", {-kInfinity, kInfinity, 100, -100, 1e4, -1e4, 0, 5}, false);
  check({.hq = 2, .hkv = 1, .sq = 90, .sk = 20}, "no keys and no sink", {-kInfinity, 2});
}

TEST_P(EveryIsa, SequenceFirstLayout) {
  RunOptions options;
  options.bshd = true;
  check({.b = 2, .hq = 4, .hkv = 2, .sq = 100, .sk = 100}, "bshd", {}, true, options);
}

TEST_P(EveryIsa, OptionalGradients) {
  for (int wanted = 0; wanted < 16; ++wanted) {
    Data data =
        reference::naive::random_data({.hq = 2, .hkv = 1, .sq = 70, .sk = 70, .d = 16, .scale = 0.25}, 3);
    round_inputs(data, GetParam().dtype);
    RunOptions options;
    options.cpu.isa = GetParam().isa;
    const KernelRun all = run_kernel(data, GetParam().dtype, options);
    options.want_dq = (wanted & 1) != 0;
    options.want_dk = (wanted & 2) != 0;
    options.want_dv = (wanted & 4) != 0;
    options.want_dsinks = (wanted & 8) != 0;
    const KernelRun some = run_kernel(data, GetParam().dtype, options);

    ASSERT_TRUE(some.backward.ok());
    ASSERT_TRUE(some.guards_intact) << "an unwanted gradient was written, wanted " << wanted;
    if (options.want_dq) {
      ASSERT_EQ(some.dq, all.dq);
    }
    if (options.want_dk) {
      ASSERT_EQ(some.dk, all.dk);
    }
    if (options.want_dv) {
      ASSERT_EQ(some.dv, all.dv);
    }
    if (options.want_dsinks) {
      ASSERT_EQ(some.dsinks, all.dsinks);
    }
  }
}

TEST_P(EveryIsa, ThreadsAndRerunsDoNotChangeABit) {
  for (const std::int64_t hkv : {1, 4}) {
    Data data =
        reference::naive::random_data({.b = 2, .hq = 8, .hkv = hkv, .sq = 150, .sk = 150, .scale = 0.125}, 5);
    round_inputs(data, GetParam().dtype);
    RunOptions options;
    options.cpu = {1, GetParam().isa};
    const KernelRun one = run_kernel(data, GetParam().dtype, options);
    options.cpu.threads = 5;
    const KernelRun many = run_kernel(data, GetParam().dtype, options);
    const KernelRun again = run_kernel(data, GetParam().dtype, options);

    EXPECT_EQ(one.bits, many.bits);
    EXPECT_EQ(again.bits, many.bits);
  }
}

TEST_P(EveryIsa, NanInOneDocumentStaysThere) {
  Data data = reference::naive::random_data({.hq = 2,
                                             .hkv = 1,
                                             .sq = 150,
                                             .sk = 150,
                                             .d = 32,
                                             .scale = 0.2,
                                             .cu_q = {0, 50, 75, 150},
                                             .cu_k = {0, 50, 75, 150}},
                                            6);
  round_inputs(data, GetParam().dtype);
  RunOptions options;
  options.cpu.isa = GetParam().isa;
  const KernelRun clean = run_kernel(data, GetParam().dtype, options);
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  for (std::size_t i = 50 * 32; i < 75 * 32; ++i) {
    data.k[i] = data.v[i] = kNaN;
    data.q[i] = data.q[150 * 32 + i] = data.dout[i] = data.dout[150 * 32 + i] = kNaN;
  }
  const KernelRun dirty = run_kernel(data, GetParam().dtype, options);

  for (std::size_t row = 0; row < 150; ++row) {
    const bool inside = row >= 50 && row < 75;
    for (std::size_t c = 0; c < 32; ++c) {
      const std::size_t i = row * 32 + c;
      if (inside) {
        ASSERT_TRUE(std::isnan(dirty.out[i]) && std::isnan(dirty.dq[i]) && std::isnan(dirty.dv[i]))
            << "row " << row;
      } else {
        ASSERT_EQ(dirty.out[i], clean.out[i]) << "row " << row;
        ASSERT_EQ(dirty.dq[i], clean.dq[i]) << "row " << row;
        ASSERT_EQ(dirty.dk[i], clean.dk[i]) << "key " << row;
        ASSERT_EQ(dirty.dv[i], clean.dv[i]) << "key " << row;
      }
    }
  }
}

TEST_P(EveryIsa, TheResidualMakesDqMoreAccurate) {
  if (GetParam().dtype == DType::kFp32) GTEST_SKIP() << "fp32 has no residual";
  // Values with a common part make Delta large against dS: what rounding out costs shows.
  Data data = reference::naive::random_data({.hq = 2, .hkv = 2, .sq = 256, .sk = 256, .scale = 0.125}, 8,
                                            true, false);
  for (double& value : data.v) value += 4;
  round_inputs(data, GetParam().dtype);
  const reference::Result truth = truth_of(data, GetParam().dtype);
  RunOptions options;
  options.cpu.isa = GetParam().isa;
  const double without = relative_error(run_kernel(data, GetParam().dtype, options).dq, truth.value.dq);
  options.residual = true;
  const double with = relative_error(run_kernel(data, GetParam().dtype, options).dq, truth.value.dq);

  EXPECT_LT(with, 0.5 * without);
}

INSTANTIATE_TEST_SUITE_P(
    Kernel, EveryIsa,
    testing::Values(IsaCase{sa::cpu::Isa::kAvx2, DType::kBf16}, IsaCase{sa::cpu::Isa::kAvx2, DType::kFp16},
                    IsaCase{sa::cpu::Isa::kAvx2, DType::kFp32}, IsaCase{sa::cpu::Isa::kAvx512, DType::kBf16},
                    IsaCase{sa::cpu::Isa::kAvx512, DType::kFp16},
                    IsaCase{sa::cpu::Isa::kAvx512, DType::kFp32}, IsaCase{sa::cpu::Isa::kAmx, DType::kBf16}),
    name_of_case);

TEST(Kernel, KeysThatNoRowSeesGetZeros) {
  Data data = reference::naive::random_data({.sq = 10, .sk = 200, .d = 16, .window = 5, .scale = 0.25}, 9);
  const KernelRun run = run_kernel(data, DType::kFp32);

  for (std::size_t i = 0; i < 186 * 16; ++i) {
    ASSERT_EQ(run.dk[i], 0) << i;
    ASSERT_EQ(run.dv[i], 0) << i;
  }
  EXPECT_NE(run.dv[186 * 16], 0);
}

TEST(Kernel, WithoutSinksIsPlainAttention) {
  Data data = reference::naive::random_data({.hq = 2, .sq = 80, .sk = 80, .d = 16, .scale = 0.25}, 10);
  data.problem.hkv = 2;
  data = reference::naive::random_data(data.problem, 10);
  data.sinks.assign(2, -kInfinity);
  const KernelRun with = run_kernel(data, DType::kFp32);
  data.sinks.clear();
  const KernelRun without = run_kernel(data, DType::kFp32);

  EXPECT_EQ(with.bits, without.bits);
}

TEST(Kernel, AcceptsBroadcastInputs) {
  // One key/value head for the whole batch: batch stride 0.
  constexpr std::int64_t kRows = 20, kD = 16;
  Data data = reference::naive::random_data({.b = 2, .sq = kRows, .sk = kRows, .d = kD, .scale = 0.25}, 11,
                                            false, false);
  std::copy_n(data.k.begin(), kRows * kD, data.k.begin() + kRows * kD);
  const KernelRun repeated = run_kernel(data, DType::kFp32);

  sa::ForwardParams f;
  f.problem = {.dtype = sa::DType::kFp32, .b = 2, .sq = kRows, .sk = kRows, .d = kD, .scale = 0.25F};
  const std::vector<float> q(data.q.begin(), data.q.end()), k(data.k.begin(), data.k.begin() + kRows * kD),
      v(data.v.begin(), data.v.end());
  std::vector<float> out(q.size());
  f.q = {q.data(), kRows * kD, 12345, kD};  // a head stride that one head never uses
  f.k = {k.data(), 0, 0, kD};
  f.v = {v.data(), kRows * kD, 0, kD};
  f.out = {out.data(), kRows * kD, 0, kD};
  std::vector<std::byte> workspace(sa::cpu::forward_workspace_bytes(f.problem, {}));
  f.workspace = workspace.data();
  f.workspace_bytes = workspace.size();
  const sa::Status status = sa::cpu::forward(f);

  ASSERT_TRUE(status.ok()) << status.message;
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], static_cast<float>(repeated.out[i]));
}

struct Refusal {
  std::string name;
  void (*spoil)(sa::ForwardParams&);
  std::string message;
};
const std::int32_t kFalling[] = {0, 3, 2, 4};
const std::int32_t kShort[] = {0, 1, 2, 3};
const std::int32_t kGood[] = {0, 1, 2, 4};

class Refused : public testing::TestWithParam<Refusal> {};

TEST_P(Refused, BeforeAnythingIsWritten) {
  std::vector<float> values(4 * 4, 1.0F);
  std::vector<float> out(4 * 4, 7.0F);
  sa::ForwardParams f;
  f.problem = {.dtype = sa::DType::kFp32, .sq = 4, .sk = 4, .d = 4, .scale = 1};
  f.q = f.k = f.v = {values.data(), 16, 16, 4};
  f.out = {out.data(), 16, 16, 4};
  std::vector<std::byte> workspace(sa::cpu::forward_workspace_bytes(f.problem, {}));
  f.workspace = workspace.data();
  f.workspace_bytes = workspace.size();
  GetParam().spoil(f);
  const sa::Status status = sa::cpu::forward(f);

  EXPECT_FALSE(status.ok());
  EXPECT_EQ(std::string(status.message).substr(0, GetParam().message.size()), GetParam().message);
  EXPECT_EQ(out, std::vector<float>(16, 7.0F));
}

INSTANTIATE_TEST_SUITE_P(
    Kernel, Refused,
    testing::Values(
        Refusal{"heads",
                [](sa::ForwardParams& f) {
                  f.problem.hq = 3;
                  f.problem.hkv = 2;
                },
                "hq 3 is not a multiple of hkv 2"},
        Refusal{"batch", [](sa::ForwardParams& f) { f.problem.b = 0; },
                "b 0, hq 1, hkv 1: wanted at least 1 each"},
        Refusal{"negative_rows", [](sa::ForwardParams& f) { f.problem.sq = -1; },
                "sq -1, sk 4: wanted at least 0 each"},
        Refusal{"head_dim", [](sa::ForwardParams& f) { f.problem.d = 257; }, "head dim 257, wanted 1 to 256"},
        Refusal{"scale", [](sa::ForwardParams& f) { f.problem.scale = NAN; }, "scale "},
        Refusal{"window",
                [](sa::ForwardParams& f) {
                  f.problem.window = 2;
                  f.problem.causal = false;
                },
                "window 2 with causal 0"},
        Refusal{"null_q", [](sa::ForwardParams& f) { f.q.data = nullptr; }, "q is null, wanted a tensor"},
        Refusal{"null_out", [](sa::ForwardParams& f) { f.out.data = nullptr; },
                "out is null, wanted a tensor"},
        Refusal{"one_cu", [](sa::ForwardParams& f) { f.problem.cu_seqlens_q = kGood; },
                "one of cu_seqlens_q and cu_seqlens_k is null"},
        Refusal{"falling",
                [](sa::ForwardParams& f) {
                  f.problem.documents = 3;
                  f.problem.cu_seqlens_q = kFalling;
                  f.problem.cu_seqlens_k = kGood;
                },
                "cu_seqlens_q falls from 3 to 2 at 2"},
        Refusal{"short",
                [](sa::ForwardParams& f) {
                  f.problem.documents = 3;
                  f.problem.cu_seqlens_q = kGood;
                  f.problem.cu_seqlens_k = kShort;
                },
                "cu_seqlens_k ends at 3, wanted 4"},
        Refusal{"workspace", [](sa::ForwardParams& f) { f.workspace_bytes = 10; },
                "a workspace of 10 bytes, wanted "},
        Refusal{"residual",
                [](sa::ForwardParams& f) {
                  static std::int8_t r[16];
                  f.residual = r;
                },
                "a residual with fp32, wanted bf16 or fp16"}),
    [](const auto& refusal) { return refusal.param.name; });

}  // namespace
}  // namespace sinkscope::testing_kernel
