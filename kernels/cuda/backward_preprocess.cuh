// SPDX-License-Identifier: Apache-2.0
// What comes before the main kernel: the largest magnitudes of each key tile, then per row Delta = dout.out,
// the scale of dq's integer sums, and the row's share of dsinks.
#pragma once

#include "kernels/cuda/backward_config.cuh"
#include "kernels/cuda/backward_ptx.cuh"

namespace sink_attention::cuda {

inline constexpr int kPreprocessThreads = 256;

namespace preprocess {

inline constexpr float kInfinity = __builtin_huge_valf();
inline constexpr float kLog2E = 1.4426950408889634F;

// Eight neighbouring elements of a row, 16 bytes.
template <typename Element>
struct Eight {
  float x[8];
  __device__ explicit Eight(uint4 bits) {
    const std::uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack_pair<Element>(pairs[i]);
      x[2 * i] = pair.x;
      x[2 * i + 1] = pair.y;
    }
  }
};

template <typename Element>
__device__ __forceinline__ const uint4* row_of(const ConstTensor& t, int batch, int head, int row) {
  const std::int64_t offset = batch * t.stride_b + head * t.stride_h + row * t.stride_s;
  return reinterpret_cast<const uint4*>(static_cast<const Element*>(t.data) + offset);
}

template <int kLanes, typename T>
__device__ __forceinline__ T sum_over_lanes(T x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFF, x, step);
  return x;
}

__device__ __forceinline__ std::uint32_t magnitude(float x) {
  return __float_as_uint(x) & 0x7FFFFFFF;
}

// The largest of each of three words over the block; every thread gets them.
__device__ inline void block_maxima(std::uint32_t (&largest)[3]) {
  __shared__ std::uint32_t of_warp[3][kPreprocessThreads / 32];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const std::uint32_t warp = __reduce_max_sync(0xFFFFFFFF, largest[i]);
    if (threadIdx.x % 32 == 0) of_warp[i][threadIdx.x / 32] = warp;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    largest[i] = 0;
#pragma unroll
    for (int w = 0; w < kPreprocessThreads / 32; ++w) largest[i] = max(largest[i], of_warp[i][w]);
  }
}

// out with its rounding residual put back.
template <typename Element>
__device__ __forceinline__ float with_residual(float stored, std::int8_t residual) {
  const std::uint32_t bits = __float_as_uint(stored);
  if constexpr (__is_same(Element, __nv_bfloat16)) {
    return __uint_as_float(bits + static_cast<std::uint32_t>(residual * 256));
  } else {
    const int exponent = max(static_cast<int>(bits >> 23 & 0xFF), 127 - 14);
    return stored +
           static_cast<float>(residual) * __uint_as_float(static_cast<std::uint32_t>(exponent - 18) << 23);
  }
}

__device__ inline float sink_at(const BackwardArguments& a, int head) {
  if (a.sinks == nullptr) return -kInfinity;
  if (a.sink_dtype == DType::kFp32) return static_cast<const float*>(a.sinks)[head];
  if (a.sink_dtype == DType::kBf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(a.sinks)[head]);
  return __half2float(static_cast<const __half*>(a.sinks)[head]);
}

// 1 - p, p = exp(sink - LSE).
__device__ inline float key_probability(float sink, float lse) {
  if (sink == -kInfinity) return 1;
  if (sink == kInfinity) return 0;
  return -expm1f(sink - lse);
}

// The largest magnitudes over the keys that some row of the tile sees.
__device__ inline void seen_maxima(const BackwardArguments& a, std::int32_t document, Range keys, int kv_head,
                                   float (&largest)[3]) {
  std::uint32_t words[3] = {0, 0, 0};
  if (!keys.empty()) {
    const std::uint32_t* maxima =
        a.key_maxima + static_cast<std::int64_t>(kv_head) * a.key_tiles * kKeyMaxima;
    const int from = first_tile(a.cu_k, document, kBackwardKeys);
    const int end = from + (keys.end - 1) / kBackwardKeys + 1;
    for (int tile = from + keys.first / kBackwardKeys + static_cast<int>(threadIdx.x); tile < end;
         tile += kPreprocessThreads) {
#pragma unroll
      for (int i = 0; i < 3; ++i)
        words[i] = max(words[i], maxima[static_cast<std::int64_t>(tile) * kKeyMaxima + i]);
    }
  }
  block_maxima(words);
#pragma unroll
  for (int i = 0; i < 3; ++i) largest[i] = __uint_as_float(words[i]);
}

// dq's sums of a row in units of `scale` stay under `bound`: sum_j P_ij |dS_ij / P_ij| |k_j|. They are kept as
// integers below 2^30, which leaves a factor 2 for rounding; the least unit is the least normal number.
__device__ inline void fixed_point(float bound, float& to_fixed, float& from_fixed) {
  to_fixed = 0;
  from_fixed = 0;
  if (bound == 0) return;
  if (!(bound < kInfinity)) {
    from_fixed = __uint_as_float(0x7FC00000);
    return;
  }
  const int exponent = max(ilogbf(bound) + 1, -96);
  to_fixed = __uint_as_float(static_cast<std::uint32_t>(127 + 30 - exponent) << 23);
  from_fixed = __uint_as_float(static_cast<std::uint32_t>(127 - 30 + exponent) << 23);
}

// Does 1 - p drown in the rounding of LSE? Then the sink takes nearly all.
__device__ inline bool is_drowned(float rest, float lse) {
  return rest > -0.5F && rest < 0x1p-18F * fmaxf(1.0F, fabsf(lse));
}

// sum_j P_ij of rows whose 1 - p is drowned, by brute force: lane l of a row's lanes has its elements 8 l to
// 8 l + 7. Rows whose longest possible logit leaves nothing are spared.
template <typename Element, int kLanes>
__device__ inline float weigh_keys(const BackwardArguments& a, const Document& at, int batch, int head,
                                   int row, float lse, float longest_key, bool wanted) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const Eight<Element> q(wanted ? row_of<Element>(a.q, batch, head, at.row + row)[lane] : uint4{});
  float square = 0;
#pragma unroll
  for (int c = 0; c < 8; ++c) square = fmaf(q.x[c], q.x[c], square);
  const float most_logit = fabsf(a.scale) * sqrtf(sum_over_lanes<kLanes>(square)) * longest_key * 1.0001F;
  const Range keys = wanted ? keys_seen_by(at, {row, row + 1}) : Range{0, 0};
  if (!wanted || most_logit - lse + logf(static_cast<float>(keys.end - keys.first)) < -88) wanted = false;

  // The rows of a warp see much the same keys: it runs over all of them.
  const int first = __reduce_min_sync(0xFFFFFFFF, wanted ? keys.first : 0x7FFFFFFF);
  const int end = __reduce_max_sync(0xFFFFFFFF, wanted ? keys.end : 0);
  float sum = 0;
  for (int key = first; key < end; ++key) {
    const Eight<Element> k(row_of<Element>(a.k, batch, head / a.group, at.key + key)[lane]);
    float logit = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) logit = fmaf(q.x[c], k.x[c], logit);
    logit = sum_over_lanes<kLanes>(logit) * a.scale;
    if (wanted && key >= keys.first && key < keys.end) sum += exp2f((logit - lse) * kLog2E);
  }
  return sum * 1.01F;
}

}  // namespace preprocess

// One block per key tile of a key/value head.
template <typename Element, int kD>
__global__ void __launch_bounds__(kPreprocessThreads)
    backward_keys_kernel(const __grid_constant__ BackwardArguments a) {
  using namespace preprocess;
  constexpr int kLanes = kD / 8;
  constexpr int kStep = kPreprocessThreads / kLanes;
  let_dependents_start();
  const int tile = static_cast<int>(blockIdx.x) % a.key_tiles;
  const int kv_head = static_cast<int>(blockIdx.x) / a.key_tiles;
  const int document = document_of_tile(a.cu_k, a.documents, tile, kBackwardKeys);
  const Document at = document_at(a, document);
  const int first = (tile - first_tile(a.cu_k, document, kBackwardKeys)) * kBackwardKeys;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;

  std::uint32_t largest[3] = {0, 0, 0};
#pragma unroll
  for (int i = 0; i < kBackwardKeys; i += kStep) {
    const int key = first + i + static_cast<int>(threadIdx.x) / kLanes;
    uint4 k_bits{}, v_bits{};
    if (key < at.keys) {
      k_bits = row_of<Element>(a.k, kv_head / a.hkv, kv_head % a.hkv, at.key + key)[lane];
      v_bits = row_of<Element>(a.v, kv_head / a.hkv, kv_head % a.hkv, at.key + key)[lane];
    }
    const Eight<Element> k(k_bits), v(v_bits);
    float k_square = 0, v_square = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      largest[kLargestKey] = max(largest[kLargestKey], magnitude(k.x[c]));
      k_square = fmaf(k.x[c], k.x[c], k_square);
      v_square = fmaf(v.x[c], v.x[c], v_square);
    }
    largest[kLongestKey] = max(largest[kLongestKey], magnitude(sum_over_lanes<kLanes>(k_square)));
    largest[kLongestValue] = max(largest[kLongestValue], magnitude(sum_over_lanes<kLanes>(v_square)));
  }
  block_maxima(largest);
  if (threadIdx.x == 0) {
    uint4 words{largest[0], largest[1], largest[2], 0};
    words.y = magnitude(sqrtf(__uint_as_float(words.y)));
    words.z = magnitude(sqrtf(__uint_as_float(words.z)));
    reinterpret_cast<uint4*>(a.key_maxima)[static_cast<std::int64_t>(kv_head) * a.key_tiles + tile] = words;
  }
}

// One block per row tile of a query head.
template <typename Element, int kD>
__global__ void __launch_bounds__(kPreprocessThreads)
    backward_rows_kernel(const __grid_constant__ BackwardArguments a) {
  using namespace preprocess;
  constexpr int kRows = backward_rows(kD);
  constexpr int kLanes = kD / 8;
  constexpr int kStep = kPreprocessThreads / kLanes;
  __shared__ double sink_terms[kRows];
  let_dependents_start();
  const int tile = static_cast<int>(blockIdx.x) % a.row_tiles;
  const int batch_head = static_cast<int>(blockIdx.x) / a.row_tiles;
  const int batch = batch_head / a.hq;
  const int head = batch_head % a.hq;
  const std::int64_t tile_at = blockIdx.x;
  const int document = document_of_tile(a.cu_q, a.documents, tile, kRows);
  const Document at = document_at(a, document);
  const int first = (tile - first_tile(a.cu_q, document, kRows)) * kRows;
  if (first >= at.rows) {
    if (threadIdx.x == 0) a.sink_sums[tile_at] = 0;
    wait_for_previous();  // a kernel must not end before what its successors build on
    return;
  }

  // Clear dq's sums.
  auto* const sums = reinterpret_cast<int4*>(a.dq_sums + tile_at * kRows * kD);
#pragma unroll
  for (int i = 0; i < kRows * kD / 4; i += kPreprocessThreads) sums[i + threadIdx.x] = int4{0, 0, 0, 0};

  const float sink = sink_at(a, head);
  const Range seen = keys_seen_by(at, {first, min(first + kRows, at.rows)});
  float largest[3];
  wait_for_previous();
  seen_maxima(a, document, seen, batch * a.hkv + head / a.group, largest);

  const int lane = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll
  for (int i = 0; i < kRows; i += kStep) {
    const int in_tile = i + static_cast<int>(threadIdx.x) / kLanes;
    const int row = first + in_tile;
    const bool inside = row < at.rows;
    const std::int64_t flat = static_cast<std::int64_t>(batch_head) * a.sq + at.row + row;
    uint4 dout_bits{}, out_bits{};
    uint2 residual_bits{};
    float lse = kInfinity, dlse = 0;
    if (inside) {
      dout_bits = row_of<Element>(a.dout, batch, head, at.row + row)[lane];
      out_bits = row_of<Element>(a.out, batch, head, at.row + row)[lane];
      if (a.residual != nullptr) residual_bits = reinterpret_cast<const uint2*>(a.residual + flat * kD)[lane];
      lse = a.lse[flat];
      if (a.dlse != nullptr) dlse = a.dlse[flat];
    }
    const Eight<Element> dout(dout_bits), out(out_bits);
    float delta = 0, dout_square = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const std::uint32_t word = c < 4 ? residual_bits.x : residual_bits.y;
      const auto residual = static_cast<std::int8_t>(word >> 8 * (c % 4));
      delta = fmaf(dout.x[c], with_residual<Element>(out.x[c], residual), delta);
      dout_square = fmaf(dout.x[c], dout.x[c], dout_square);
    }
    delta = sum_over_lanes<kLanes>(delta);
    dout_square = sum_over_lanes<kLanes>(dout_square);

    // sum_j P_ij, or a little more.
    const Range row_keys = inside ? keys_seen_by(at, {row, row + 1}) : Range{0, 0};
    const float rest = inside ? key_probability(sink, lse) : 0.0F;
    const bool drowned = !row_keys.empty() && sink < kInfinity && is_drowned(rest, lse);
    float weight = rest > 1 ? 1.0F : rest;  // NaN stays
    if (__any_sync(0xFFFFFFFF, drowned)) {
      const float weighed =
          weigh_keys<Element, kLanes>(a, at, batch, head, row, lse, largest[kLongestKey], drowned);
      if (drowned) weight = weighed;
    }

    if (lane == 0) {
      const float shift = delta - dlse;
      float to_fixed = 0, from_fixed = 0;
      if (!row_keys.empty() && weight != 0) {
        const float most_ds = sqrtf(dout_square) * largest[kLongestValue] + fabsf(shift);
        fixed_point(weight * most_ds * largest[kLargestKey], to_fixed, from_fixed);
      }
      float* const facts = a.row_facts + tile_at * kRowFacts * kRows + in_tile;
      facts[kLse2 * kRows] = lse == -kInfinity ? kInfinity : lse * kLog2E;
      facts[kShift * kRows] = inside ? shift : 0.0F;
      facts[kToFixed * kRows] = to_fixed;
      facts[kFromFixed * kRows] = from_fixed;
      // Near 1, p is exact to more digits as 1 - (1 - p).
      const double p = rest > 0.5F ? static_cast<double>(expf(sink - lse)) : 1.0 - static_cast<double>(rest);
      sink_terms[in_tile] =
          inside && sink != -kInfinity ? p * (static_cast<double>(dlse) - static_cast<double>(delta)) : 0.0;
    }
  }

  // The tile's share of dsinks, in an order of its own.
  __syncthreads();
  if (threadIdx.x >= 32) return;
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kRows; i += 32) sum += sink_terms[i + threadIdx.x];
  sum = sum_over_lanes<32>(sum);
  if (threadIdx.x == 0) a.sink_sums[tile_at] = sum;
}

}  // namespace sink_attention::cuda
