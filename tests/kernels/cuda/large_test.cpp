// SPDX-License-Identifier: Apache-2.0
// Tensors of more than 2^31 elements: b5 hq64 hkv8 s131072 d64, 2.7e9 elements of q, with a window of 128 so that a
// row's truth is quick. The inputs are a table of random rows laid end to end over the tensor. The tables' lengths
// are prime, so rows that a wrapped index would confuse (2^k elements apart) hold different numbers. Sampled rows
// and keys, those next to 2^31 and 2^32 elements and the very last among them, are worked out in double here.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cuda_runtime_api.h>
#include <random>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/sink_attention.h"
#include "src/core/parallel.hpp"
#include "src/core/tensor.hpp"
#include "tests/kernels/cuda/gpu_place.hpp"

namespace sinkscope::testing_kernel {
namespace {

constexpr std::int64_t kB = 5, kHq = 64, kHkv = 8, kGroup = kHq / kHkv, kS = 131072, kD = 64, kWindow = 128;
constexpr double kScale = 0.125;
constexpr std::int64_t kRows = kB * kHq * kS, kKeys = kB * kHkv * kS;
static_assert(kRows * kD > (std::int64_t{1} << 31));

// The rows of a tensor, as the kernel sees them: row r is row r mod count of the table.
class Table {
 public:
  Table(std::int64_t count, unsigned seed) : count_(count), bits_(DType::kBf16, {count, kD}) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < bits_.size(); ++i) bits_.set(i, static_cast<double>(normal(engine)));
    values_.resize(static_cast<std::size_t>(bits_.size()));
    for (std::int64_t i = 0; i < bits_.size(); ++i)
      values_[static_cast<std::size_t>(i)] = static_cast<float>(bits_.at(i));
  }

  const float* row(std::int64_t r) const { return values_.data() + r % count_ * kD; }

  DeviceMemory laid_out(std::int64_t rows) const {
    const std::size_t table_bytes = bits_.bytes(), total = static_cast<std::size_t>(rows * kD) * 2;
    DeviceMemory memory(total);
    succeed(cudaMemcpy(memory.data(), bits_.data(), std::min(table_bytes, total), cudaMemcpyHostToDevice),
            "cudaMemcpy");
    for (std::size_t at = table_bytes; at < total; at += table_bytes) {
      succeed(cudaMemcpyAsync(memory.data() + at, memory.data(), std::min(table_bytes, total - at),
                              cudaMemcpyDeviceToDevice),
              "cudaMemcpyAsync");
    }
    return memory;
  }

 private:
  std::int64_t count_;
  Tensor bits_;
  std::vector<float> values_;
};

double dot(const float* a, const float* b) {
  double sum = 0;
  for (std::int64_t c = 0; c < kD; ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return sum;
}

using Vector = std::vector<double>;

struct RowTruth {
  std::int64_t first_key = 0;  // of the row's keys; its own is the last
  Vector p, dp;                // over its keys
  double lse = 0, p_sink = 0, delta = 0;
};

class CudaLarge : public OnGpu {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    for (std::int64_t h = 0; h < kHq; ++h) sinks_.push_back(static_cast<float>(h % 7) * 0.7F - 1);
  }

  RowTruth truth_of_row(std::int64_t batch, std::int64_t head, std::int64_t i) const {
    RowTruth row;
    row.first_key = std::max<std::int64_t>(0, i - kWindow + 1);
    const std::int64_t flat = (batch * kHq + head) * kS + i;
    const std::int64_t first_flat = (batch * kHkv + head / kGroup) * kS + row.first_key;
    const double sink = static_cast<double>(sinks_[static_cast<std::size_t>(head)]);
    double high = sink;
    for (std::int64_t n = 0; n <= i - row.first_key; ++n) {
      row.p.push_back(kScale * dot(q_.row(flat), k_.row(first_flat + n)));
      row.dp.push_back(dot(dout_.row(flat), v_.row(first_flat + n)));
      high = std::max(high, row.p.back());
    }
    double sum = std::exp(sink - high);
    for (const double s : row.p) sum += std::exp(s - high);
    row.lse = high + std::log(sum);
    row.p_sink = std::exp(sink - row.lse);
    for (std::size_t n = 0; n < row.p.size(); ++n) {
      row.p[n] = std::exp(row.p[n] - row.lse);
      row.delta += row.p[n] * row.dp[n];
    }
    return row;
  }

  Table q_{65521, 1}, k_{65519, 2}, v_{65497, 3}, dout_{65479, 4};
  std::vector<float> sinks_;
};

// Row `r` of a bf16 tensor on the device.
Vector row_of(DeviceMemory& tensor, std::int64_t r) {
  Tensor row(DType::kBf16, {kD});
  succeed(cudaMemcpy(row.data(), tensor.data() + r * kD * 2, kD * 2, cudaMemcpyDeviceToHost), "cudaMemcpy");
  return row.widened();
}

// Another row's numbers would be off by more than 1; those of a healthy kernel are by about 0.005.
void expect_near(const Vector& got, const Vector& ref, const char* what) {
  double err2 = 0, ref2 = 0;
  for (std::size_t c = 0; c < ref.size(); ++c) {
    err2 += (got[c] - ref[c]) * (got[c] - ref[c]);
    ref2 += ref[c] * ref[c];
  }
  EXPECT_LE(std::sqrt(err2), 0.02 * std::sqrt(ref2)) << what;
}

void add(Vector& sum, double factor, const float* row) {
  for (std::int64_t c = 0; c < kD; ++c)
    sum[static_cast<std::size_t>(c)] += factor * static_cast<double>(row[c]);
}

// Flat rows (or keys) to look at: both ends, the neighbourhood of 2^31 and 2^32 elements and bytes, and some others.
std::vector<std::int64_t> samples(std::int64_t count, unsigned seed) {
  std::vector<std::int64_t> rows = {0, 1, kWindow, kS - 1, kS, count - kS, count - 2, count - 1};
  for (const int power : {30, 31, 32}) {
    const std::int64_t row = (std::int64_t{1} << power) / kD;
    for (const std::int64_t near : {row - 1, row, row + 1, row + kWindow})
      if (near < count) rows.push_back(near);
  }
  std::mt19937_64 engine(seed);
  for (int i = 0; i < 40; ++i)
    rows.push_back(static_cast<std::int64_t>(engine() % static_cast<std::uint64_t>(count)));
  return rows;
}

TEST_F(CudaLarge, MoreThan2To31Elements) {
  std::size_t free = 0, total = 0;
  succeed(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  sa::ForwardParams f;
  f.problem = {
      .b = kB, .hq = kHq, .hkv = kHkv, .sq = kS, .sk = kS, .d = kD, .scale = kScale, .window = kWindow};
  const std::size_t workspace_bytes =
      std::max(sa::cuda::forward_workspace_bytes(f.problem), sa::cuda::backward_workspace_bytes(f.problem));
  const std::size_t needed = static_cast<std::size_t>(4 * kRows + 4 * kKeys) * kD * 2 +
                             static_cast<std::size_t>(kRows) * 4 + workspace_bytes;
  if (free < needed + (std::size_t{1} << 28))
    GTEST_SKIP() << "the GPU has " << free << " bytes free, wanted " << needed << " and 256 MiB";

  DeviceMemory q = q_.laid_out(kRows), k = k_.laid_out(kKeys), v = v_.laid_out(kKeys),
               dout = dout_.laid_out(kRows);
  DeviceMemory out(kRows * kD * 2), dq(kRows * kD * 2), dk(kKeys * kD * 2), dv(kKeys * kD * 2),
      lse(kRows * 4), dsinks(kHq * 4), sinks(kHq * 4), workspace(workspace_bytes);
  for (const auto& [memory, bytes] : {std::pair{&out, kRows * kD * 2},
                                      {&dq, kRows * kD * 2},
                                      {&dk, kKeys * kD * 2},
                                      {&dv, kKeys * kD * 2},
                                      {&lse, kRows * 4},
                                      {&dsinks, kHq * 4}})
    succeed(cudaMemset(memory->data(), 0xFF, static_cast<std::size_t>(bytes)), "cudaMemset");
  succeed(cudaMemcpy(sinks.data(), sinks_.data(), kHq * 4, cudaMemcpyHostToDevice), "cudaMemcpy");

  f.q = {q.data(), kHq * kS * kD, kS * kD, kD};
  f.k = {k.data(), kHkv * kS * kD, kS * kD, kD};
  f.v = {v.data(), kHkv * kS * kD, kS * kD, kD};
  f.sinks = sinks.data();
  f.out = {out.data(), kHq * kS * kD, kS * kD, kD};
  f.lse = reinterpret_cast<float*>(lse.data());
  f.workspace = workspace.data();
  f.workspace_bytes = workspace_bytes;
  sa::BackwardParams w;
  w.problem = f.problem;
  w.q = f.q;
  w.k = f.k;
  w.v = f.v;
  w.sinks = f.sinks;
  w.out = {out.data(), kHq * kS * kD, kS * kD, kD};
  w.lse = f.lse;
  w.dout = {dout.data(), kHq * kS * kD, kS * kD, kD};
  w.dq = {dq.data(), kHq * kS * kD, kS * kD, kD};
  w.dk = {dk.data(), kHkv * kS * kD, kS * kD, kD};
  w.dv = {dv.data(), kHkv * kS * kD, kS * kD, kD};
  w.dsinks = reinterpret_cast<float*>(dsinks.data());
  w.workspace = workspace.data();
  w.workspace_bytes = workspace_bytes;
  const GpuPlace place;
  const sa::Status forward = place.forward(f);
  ASSERT_TRUE(forward.ok()) << forward.message;
  const sa::Status backward = place.backward(w);
  ASSERT_TRUE(backward.ok()) << backward.message;

  for (const std::int64_t flat_row : samples(kRows, 5)) {
    SCOPED_TRACE("flat row " + std::to_string(flat_row));
    const std::int64_t batch = flat_row / kS / kHq, head = flat_row / kS % kHq;
    const RowTruth row = truth_of_row(batch, head, flat_row % kS);
    const std::int64_t first_flat = (batch * kHkv + head / kGroup) * kS + row.first_key;
    Vector out_ref(kD), dq_ref(kD);
    for (std::size_t n = 0; n < row.p.size(); ++n) {
      const std::int64_t key = first_flat + static_cast<std::int64_t>(n);
      add(out_ref, row.p[n], v_.row(key));
      add(dq_ref, kScale * row.p[n] * (row.dp[n] - row.delta), k_.row(key));
    }
    float lse_got = NAN;
    succeed(cudaMemcpy(&lse_got, lse.data() + flat_row * 4, 4, cudaMemcpyDeviceToHost), "cudaMemcpy");
    EXPECT_NEAR(static_cast<double>(lse_got), row.lse, 1e-5);
    expect_near(row_of(out, flat_row), out_ref, "out");
    expect_near(row_of(dq, flat_row), dq_ref, "dq");
  }

  for (const std::int64_t flat_key : samples(kKeys, 6)) {
    SCOPED_TRACE("flat key " + std::to_string(flat_key));
    const std::int64_t batch = flat_key / kS / kHkv, kv_head = flat_key / kS % kHkv, j = flat_key % kS;
    Vector dk_ref(kD), dv_ref(kD);
    for (std::int64_t head = kv_head * kGroup; head < (kv_head + 1) * kGroup; ++head) {
      for (std::int64_t i = j; i < std::min(kS, j + kWindow); ++i) {
        const RowTruth row = truth_of_row(batch, head, i);
        const auto n = static_cast<std::size_t>(j - row.first_key);
        const std::int64_t flat_row = (batch * kHq + head) * kS + i;
        add(dv_ref, row.p[n], dout_.row(flat_row));
        add(dk_ref, kScale * row.p[n] * (row.dp[n] - row.delta), q_.row(flat_row));
      }
    }
    expect_near(row_of(dk, flat_key), dk_ref, "dk");
    expect_near(row_of(dv, flat_key), dv_ref, "dv");
  }

  // One head's sink gradient, over every row of every batch entry. A batch entry left out would take a fifth of
  // the sum of squares.
  constexpr std::int64_t kHead = kHq - 1, kPiece = 4096;
  Vector sums(kB * kS / kPiece), squares(sums.size());
  parallel_for(static_cast<std::int64_t>(sums.size()), 0, [&](std::int64_t piece) {
    for (std::int64_t n = piece * kPiece; n < (piece + 1) * kPiece; ++n) {
      const RowTruth row = truth_of_row(n / kS, kHead, n % kS);
      sums[static_cast<std::size_t>(piece)] -= row.p_sink * row.delta;
      squares[static_cast<std::size_t>(piece)] += row.p_sink * row.delta * row.p_sink * row.delta;
    }
  });
  double sum = 0, square = 0;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    sum += sums[i];
    square += squares[i];
  }
  float got = NAN;
  succeed(cudaMemcpy(&got, dsinks.data() + kHead * 4, 4, cudaMemcpyDeviceToHost), "cudaMemcpy");
  EXPECT_NEAR(static_cast<double>(got), sum, 0.05 * std::sqrt(square));
}

}  // namespace
}  // namespace sinkscope::testing_kernel
