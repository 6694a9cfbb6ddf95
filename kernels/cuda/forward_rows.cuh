// SPDX-License-Identifier: Apache-2.0
// The forward's arithmetic on the two rows of a thread: lane 4 g + t of warp w owns rows 16 w + g and that
// plus 8, of every 8 columns those at 2 t and 2 t + 1, and shares its rows with the other lanes of its quad.
#pragma once

#include <math_constants.h>

#include "kernels/cuda/config.cuh"

namespace sink_attention::cuda {

// Logits, in the raw units of q.k, of 64 rows and a tile of keys.
template <int kKeys>
using LogitFragment = float[kKeys / 2];
// The same, rounded and packed as the A operand of steps of 16 keys.
template <int kKeys>
using ProbabilityFragment = std::uint32_t[kKeys / 16][4];

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFF, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFF, x, 2);
}

// The keys that a thread's rows see, in columns of its own: column c stands for key c + 2 t.
struct VisibleKeys {
  std::int32_t first[2], end[2];

  __device__ __forceinline__ VisibleKeys(const Document& document, const std::int32_t (&row)[2], int lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      first[r] = document.first_key(row[r]) - 2 * (lane % 4);
      end[r] = document.end_key(row[r]) - 2 * (lane % 4);
    }
  }

  // Overwrites the logits of pairs that do not see each other, in the tile whose first key is `key`.
  template <int kCount>
  __device__ __forceinline__ void mask(float (&s)[kCount], std::int32_t key) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int r = i / 2 % 2;
      const std::int32_t column = i / 4 * 8 + i % 2;
      if (column >= end[r] - key || column < first[r] - key) s[i] = -CUDART_INF_F;
    }
  }
};

// The running softmax of a thread's two rows.
struct RowState {
  float high[2];   // the greatest logit so far, raw; equal in a quad
  float pivot[2];  // high in units of log2, 0 while no key has been seen
  float sum[2];    // of exp2(logit - pivot) over this thread's columns

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      high[r] = -CUDART_INF_F;
      pivot[r] = sum[r] = 0;
    }
  }

  // Replaces a tile of logits by exp2(logit - new pivot); `rescale` gets what earlier sums must be multiplied by.
  template <int kCount>
  __device__ __forceinline__ void exponentiate(float (&s)[kCount], float scale_log2, float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float a = fmaxf(s[2 * r], s[2 * r + 1]), b = fmaxf(s[4 + 2 * r], s[4 + 2 * r + 1]);
#pragma unroll
      for (int i = 8; i < kCount; i += 8) {
        a = fmaxf(a, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
        b = fmaxf(b, fmaxf(s[i + 4 + 2 * r], s[i + 4 + 2 * r + 1]));
      }
      const float new_high = fmaxf(high[r], quad_max(fmaxf(a, b)));
      // A row that has seen no key keeps a pivot of 0: -inf minus -inf would be NaN.
      const float new_pivot = new_high == -CUDART_INF_F ? 0.0F : new_high * scale_log2;
      rescale[r] = high[r] == -CUDART_INF_F ? 0.0F : fast_exp2(pivot[r] - new_pivot);
      high[r] = new_high;
      pivot[r] = new_pivot;
    }
    float partial[2][2] = {};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int r = i / 2 % 2;
      s[i] = fast_exp2(fmaf(s[i], scale_log2, -pivot[r]));
      partial[r][i / 4 % 2] += s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = fmaf(sum[r], rescale[r], partial[r][0] + partial[r][1]);
  }
};

// Rounds a tile of probabilities for the product with V.
template <typename Element, int kCount>
__device__ __forceinline__ void round_tile(const float (&s)[kCount], std::uint32_t (&p)[kCount / 8][4]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 2) p[i / 8][i / 2 % 4] = pack_pair<Element>(s[i], s[i + 1]);
}

// Sums of P V of 64 rows; with kWithSum also of the same rounded P alone, eight times, behind the last 64 columns.
template <int kHeadDim, bool kWithSum>
struct OutputFragment {
  static constexpr int kFirst = kHeadDim == 128 && kWithSum ? 32 : 0;
  static constexpr int kLast = kHeadDim / 2 - kFirst + (kWithSum ? 4 : 0);
  float first[kFirst == 0 ? 1 : kFirst];  // columns 0 to 63 of a head dim of 128 whose last 64 have the sum
  float last[kLast];

  __device__ __forceinline__ float& operator[](int i) { return i < kFirst ? first[i] : last[i - kFirst]; }
  __device__ __forceinline__ float operator[](int i) const {
    return i < kFirst ? first[i] : last[i - kFirst];
  }
  __device__ __forceinline__ float sum(int r) const { return last[kLast - 4 + 2 * r]; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kFirst + kLast; ++i) (*this)[i] = 0;
  }
  // By what the two rows' pivots have moved.
  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
    if (!__any_sync(0xFFFFFFFF, factor[0] != 1 || factor[1] != 1)) return;
#pragma unroll
    for (int i = 0; i < kFirst + kLast; ++i) (*this)[i] *= factor[i / 2 % 2];
  }
};

// A sink as a float; -inf where there is none.
__device__ __forceinline__ float load_sink(const void* sinks, DType dtype, std::int32_t head) {
  if (sinks == nullptr) return -CUDART_INF_F;
  switch (dtype) {
    case DType::kBf16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(sinks)[head]);
    case DType::kFp16:
      return __half2float(static_cast<const __half*>(sinks)[head]);
    default:
      return static_cast<const float*>(sinks)[head];
  }
}

struct RowResult {
  float factor;  // multiplies the row's sums of P V
  float lse;     // natural, the sink included
};

// Folds the sink in, with the larger of it and the greatest logit as pivot, so that nothing overflows.
__device__ __forceinline__ RowResult finish_row(float high, float pivot, float sum, float divisor,
                                                float sink) {
  constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
  const bool no_keys = high == -CUDART_INF_F && sum == 0;  // not where logits are NaN
  if (no_keys || (sink == CUDART_INF_F && sum == sum)) return {0.0F, sink};
  const float sink_over = static_cast<float>(sink * kLog2E - pivot);  // in units of log2
  if (!(sink_over > 0)) {
    const float sink_weight = exp2f(sink_over);
    return {1.0F / (divisor + sink_weight), static_cast<float>(pivot * kLn2 + logf(sum + sink_weight))};
  }
  const float weight = exp2f(-sink_over);
  return {weight / fmaf(divisor, weight, 1.0F), static_cast<float>(sink + double{log1pf(sum * weight)})};
}

// out's rounding residual in units of 2^-8 of its last place.
template <typename Element>
__device__ __forceinline__ std::int32_t residual_of(float exact, float stored) {
  std::int32_t units;
  if constexpr (__is_same(Element, __nv_bfloat16)) {
    units = (__float_as_int(exact) - __float_as_int(stored) + 128) >> 8;
  } else {
    // 2^(18 - exponent of stored), the exponent at least that of the least normal number.
    const std::int32_t exponent = max((__float_as_int(stored) >> 23 & 0xFF) - 127, -14);
    units = __float2int_rn((exact - stored) * __int_as_float((18 - exponent + 127) << 23));
  }
  return max(-128, min(127, units));
}

}  // namespace sink_attention::cuda
