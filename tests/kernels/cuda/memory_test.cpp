// SPDX-License-Identifier: Apache-2.0
// What the CUDA backend reads and writes: any strides, only what is asked for, nothing of another document's, and
// zeros for keys that no row sees.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/kernels/cuda/gpu_place.hpp"
#include "tests/kernels/healthy.hpp"
#include "tests/kernels/run_kernel.hpp"

namespace sinkscope::testing_kernel {
namespace {

using reference::Problem;
using reference::naive::Data;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Format {
  DType dtype;
  std::int64_t d;
};

class CudaMemory : public testing::TestWithParam<Format> {
 protected:
  void SetUp() override { require_gpu(sa::cuda::available().message); }

  static Data data_of(Problem problem, unsigned seed) {
    problem.d = GetParam().d;
    // What the kernel's fp32 parameter holds is the scale of the truth too.
    problem.scale = static_cast<double>(static_cast<float>(1 / std::sqrt(static_cast<double>(problem.d))));
    Data data = reference::naive::random_data(problem, seed);
    round_inputs(data, GetParam().dtype);
    return data;
  }
  static KernelRun run(const Data& data, const RunOptions& options = {}) {
    return run_kernel_at(GpuPlace{}, data, GetParam().dtype, options);
  }
};

// The shapes that these tests run on are right; the others only have to be the same.
TEST_P(CudaMemory, ContiguousRunsAreHealthy) {
  const Problem problems[] = {{.b = 2, .hq = 4, .hkv = 2, .sq = 130, .sk = 190},
                              {.hq = 4, .hkv = 1, .sq = 300, .sk = 300, .window = 100},
                              {.hq = 2,
                               .hkv = 2,
                               .sq = 250,
                               .sk = 250,
                               .cu_q = {0, 50, 50, 114, 250},
                               .cu_k = {0, 50, 50, 114, 250}}};
  for (const Problem& problem : problems) {
    for (const bool residual : {false, true}) {
      const Data data = data_of(problem, 31);
      RunOptions options;
      options.residual = residual;
      expect_healthy(run(data, options), truth_of(data, GetParam().dtype), GetParam().dtype,
                     "sq" + std::to_string(problem.sq) + (residual ? " residual" : ""));
    }
  }
}

TEST_P(CudaMemory, TheResidualMakesDqMoreAccurate) {
  // Values with a common part make Delta large against dS: what rounding out costs shows.
  Data data = data_of({.hq = 2, .hkv = 2, .sq = 256, .sk = 256}, 30);
  for (double& value : data.v) value += 4;
  data.dlse.clear();
  round_inputs(data, GetParam().dtype);
  const reference::Result truth = truth_of(data, GetParam().dtype);
  const double without = relative_error(run(data).dq, truth.value.dq);
  RunOptions options;
  options.residual = true;
  const double with = relative_error(run(data, options).dq, truth.value.dq);

  EXPECT_LT(with, 0.5 * without);
}

TEST_P(CudaMemory, StridesDoNotChangeABit) {
  const Problem problems[] = {{.b = 2, .hq = 6, .hkv = 2, .sq = 200, .sk = 200, .window = 70},
                              {.b = 1, .hq = 4, .hkv = 1, .sq = 129, .sk = 257},
                              {.b = 3, .hq = 1, .hkv = 1, .sq = 1, .sk = 70},
                              {.hq = 4,
                               .hkv = 2,
                               .sq = 250,
                               .sk = 250,
                               .cu_q = {0, 50, 50, 114, 250},
                               .cu_k = {0, 50, 50, 114, 250}}};
  for (const Problem& problem : problems) {
    const Data data = data_of(problem, 32);
    const std::vector<std::byte> contiguous = bits_of(run(data));
    for (const bool bshd : {false, true}) {
      for (const std::int64_t gap : {0, 8, 72}) {
        for (const bool idle : {false, true}) {
          RunOptions options;
          options.bshd = bshd;
          options.row_gap = gap;
          options.idle_strides = idle;
          EXPECT_EQ(bits_of(run(data, options)), contiguous)
              << "sq" << problem.sq << (bshd ? " bshd" : "") << " gap " << gap
              << (idle ? " idle strides" : "");
        }
      }
    }
  }
}

TEST_P(CudaMemory, OneBatchEntryOfKeysCanServeAll) {
  Data data = data_of({.b = 3, .hq = 4, .hkv = 2, .sq = 150, .sk = 150}, 33);
  for (std::vector<double>* values : {&data.k, &data.v}) {
    const std::size_t of_one = values->size() / 3;
    for (std::size_t i = of_one; i < values->size(); ++i) (*values)[i] = (*values)[i - of_one];
  }
  RunOptions options;
  options.broadcast_kv = true;
  EXPECT_EQ(bits_of(run(data, options)), bits_of(run(data)));
}

TEST_P(CudaMemory, AnUnwantedGradientChangesNoOther) {
  const Problem problems[] = {
      {.b = 2, .hq = 4, .hkv = 2, .sq = 200, .sk = 200},
      {.hq = 8, .hkv = 1, .sq = 200, .sk = 200, .window = 64},
      {.hq = 2, .hkv = 1, .sq = 200, .sk = 200, .cu_q = {0, 60, 130, 200}, .cu_k = {0, 60, 130, 200}}};
  for (const Problem& problem : problems) {
    const Data data = data_of(problem, 34);
    const KernelRun all = run(data);
    for (int wanted = 0; wanted < 16; ++wanted) {
      RunOptions options;
      options.want_dq = (wanted & 1) != 0;
      options.want_dk = (wanted & 2) != 0;
      options.want_dv = (wanted & 4) != 0;
      options.want_dsinks = (wanted & 8) != 0;
      const KernelRun some = run(data, options);
      SCOPED_TRACE("window " + std::to_string(problem.window) + ", wanted " + std::to_string(wanted));
      ASSERT_TRUE(some.backward.ok()) << some.backward.message;
      EXPECT_TRUE(some.guards_intact) << "an unwanted gradient was written";
      EXPECT_TRUE(!options.want_dq || some.dq == all.dq);
      EXPECT_TRUE(!options.want_dk || some.dk == all.dk);
      EXPECT_TRUE(!options.want_dv || some.dv == all.dv);
      EXPECT_TRUE(!options.want_dsinks || some.dsinks == all.dsinks);
    }
  }
}

// Which of `count` rows of a tensor [h, count, d] differ from `ref`; NaN differs from all.
std::vector<bool> rows_that_differ(const std::vector<double>& got, const std::vector<double>& ref,
                                   std::int64_t count, std::int64_t d) {
  std::vector<bool> differ(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < got.size(); ++i)
    if (!(got[i] == ref[i])) differ[i / static_cast<std::size_t>(d) % differ.size()] = true;
  return differ;
}

void poison(std::vector<double>& values, std::int64_t heads, std::int64_t rows, std::int64_t first,
            std::int64_t end, std::int64_t d) {
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t i = (h * rows + first) * d; i < (h * rows + end) * d; ++i)
      values[static_cast<std::size_t>(i)] = kNaN;
  }
}

TEST_P(CudaMemory, NanOfOneDocumentReachesNoOther) {
  // Documents that begin and end inside tiles, at their edges, and far apart; queries' and keys' may differ.
  const std::vector<std::int64_t> cu_q = {0, 64, 100, 100, 229, 400}, cu_k = {0, 64, 128, 150, 290, 470};
  for (const std::int64_t window : {0, 40}) {
    const Problem problem{
        .hq = 4, .hkv = 2, .sq = 400, .sk = 470, .window = window, .cu_q = cu_q, .cu_k = cu_k};
    const Data clean_data = data_of(problem, 35);
    const KernelRun clean = run(clean_data);
    const std::int64_t d = GetParam().d;
    for (std::size_t document = 0; document + 1 < cu_q.size(); ++document) {
      const std::int64_t row = cu_q[document], row_end = cu_q[document + 1];
      const std::int64_t key = cu_k[document], key_end = cu_k[document + 1];
      Data data = clean_data;
      poison(data.q, 4, 400, row, row_end, d);
      poison(data.dout, 4, 400, row, row_end, d);
      poison(data.dlse, 4, 400, row, row_end, 1);
      poison(data.k, 2, 470, key, key_end, d);
      poison(data.v, 2, 470, key, key_end, d);
      const KernelRun dirty = run(data);
      SCOPED_TRACE("window " + std::to_string(window) + ", document " + std::to_string(document));
      ASSERT_TRUE(dirty.guards_intact);
      const std::vector<bool> out = rows_that_differ(dirty.out, clean.out, 400, d),
                              lse = rows_that_differ(dirty.lse, clean.lse, 400, 1),
                              dq = rows_that_differ(dirty.dq, clean.dq, 400, d),
                              dk = rows_that_differ(dirty.dk, clean.dk, 470, d),
                              dv = rows_that_differ(dirty.dv, clean.dv, 470, d);
      for (std::int64_t i = 0; i < 470; ++i) {
        const auto at = static_cast<std::size_t>(i);
        if (i < 400 && (i < row || i >= row_end)) {
          ASSERT_FALSE(out[at] || lse[at] || dq[at]) << "row " << i;
        } else if (i < 400) {
          ASSERT_TRUE(out[at] && lse[at] && dq[at]) << "row " << i << " of the document itself";
        }
        if (i < key || i >= key_end) {
          ASSERT_FALSE(dk[at] || dv[at]) << "key " << i;
        }
      }
    }
  }
}

TEST_P(CudaMemory, NanOfOneBatchEntryOrHeadReachesNoOther) {
  const Problem problem{.b = 2, .hq = 4, .hkv = 2, .sq = 100, .sk = 100};
  const Data clean_data = data_of(problem, 36);
  const KernelRun clean = run(clean_data);
  Data data = clean_data;
  const std::size_t d = static_cast<std::size_t>(GetParam().d);
  // All of key/value head 1 of batch entry 0: query heads 2 and 3.
  for (std::vector<double>* values : {&data.k, &data.v})
    std::fill_n(values->begin() + static_cast<std::ptrdiff_t>(100 * d), 100 * d, kNaN);
  const KernelRun dirty = run(data);

  const auto expect_same_but = [](const std::vector<double>& got, const std::vector<double>& ref,
                                  std::size_t first, std::size_t end, const char* what) {
    for (std::size_t i = 0; i < got.size(); ++i) {
      if (i >= first && i < end) {
        ASSERT_TRUE(std::isnan(got[i])) << what << "[" << i << "]";
      } else {
        ASSERT_EQ(got[i], ref[i]) << what << "[" << i << "]";
      }
    }
  };
  expect_same_but(dirty.out, clean.out, 200 * d, 400 * d, "out");
  expect_same_but(dirty.dq, clean.dq, 200 * d, 400 * d, "dq");
  expect_same_but(dirty.dk, clean.dk, 100 * d, 200 * d, "dk");
  expect_same_but(dirty.dsinks, clean.dsinks, 2, 4, "dsinks");
}

TEST_P(CudaMemory, KeysThatNoRowSeesGetZeros) {
  const std::int64_t d = GetParam().d;
  // Rows 0 to 9 stand at keys 590 to 599 and see from 586 on.
  const KernelRun window = run(data_of({.hq = 4, .hkv = 2, .sq = 10, .sk = 600, .window = 5}, 37));
  // The middle document has keys and no rows; the last has fewer keys than rows.
  const KernelRun documents = run(data_of(
      {.hq = 4, .hkv = 2, .sq = 160, .sk = 300, .cu_q = {0, 60, 60, 160}, .cu_k = {0, 60, 260, 300}}, 38));
  const auto expect_zeros = [&](const KernelRun& of, std::int64_t keys, std::int64_t first,
                                std::int64_t end) {
    for (std::int64_t i = 0; i < 2 * keys * d; ++i) {
      const std::int64_t key = i / d % keys;
      if (key < first || key >= end) continue;
      ASSERT_EQ(of.dk[static_cast<std::size_t>(i)], 0) << "dk of key " << key;
      ASSERT_EQ(of.dv[static_cast<std::size_t>(i)], 0) << "dv of key " << key;
    }
    for (std::int64_t key = 0; key < keys; ++key) {
      if (key >= first && key < end) continue;
      ASSERT_NE(of.dv[static_cast<std::size_t>(key * d)], 0) << "dv of key " << key << ", which is seen";
    }
  };
  expect_zeros(window, 600, 0, 586);
  expect_zeros(documents, 300, 60, 260);
}

TEST_P(CudaMemory, EmptySidesAreFine) {
  const KernelRun no_keys = run(data_of({.hq = 2, .hkv = 1, .sq = 70, .sk = 0}, 39));
  ASSERT_TRUE(no_keys.forward.ok()) << no_keys.forward.message;
  ASSERT_TRUE(no_keys.backward.ok()) << no_keys.backward.message;
  for (const double x : no_keys.out) ASSERT_EQ(x, 0);
  for (const double x : no_keys.dq) ASSERT_EQ(x, 0);
  const KernelRun no_rows = run(data_of({.hq = 2, .hkv = 1, .sq = 0, .sk = 70}, 40));
  ASSERT_TRUE(no_rows.forward.ok()) << no_rows.forward.message;
  ASSERT_TRUE(no_rows.backward.ok()) << no_rows.backward.message;
  for (const double x : no_rows.dk) ASSERT_EQ(x, 0);
  for (const double x : no_rows.dv) ASSERT_EQ(x, 0);
  for (const double x : no_rows.dsinks) ASSERT_EQ(x, 0);
}

INSTANTIATE_TEST_SUITE_P(Cuda, CudaMemory,
                         testing::Values(Format{DType::kBf16, 64}, Format{DType::kBf16, 128},
                                         Format{DType::kFp16, 64}, Format{DType::kFp16, 128}),
                         [](const auto& of) {
                           return std::string(name_of(of.param.dtype)) + "_d" + std::to_string(of.param.d);
                         });

}  // namespace
}  // namespace sinkscope::testing_kernel
