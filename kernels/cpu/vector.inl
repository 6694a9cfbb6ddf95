// SPDX-License-Identifier: Apache-2.0
// Vectors as wide as the including translation unit's flags allow, and the few functions on them. Everything
// here has internal linkage: each instruction set gets its own copy.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <limits>

#include "kernels/cpu/config.h"

namespace sink_attention::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = std::int32_t __attribute__((vector_size(4 * kLanes)));
using Words = std::uint32_t __attribute__((vector_size(4 * kLanes)));

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896340736F;

inline Floats broadcast(float x) {
  return Floats{} + x;
}

inline Floats load(const float* from) {
  Floats v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void store(float* to, Floats v) {
  std::memcpy(to, &v, sizeof v);
}

inline Floats max(Floats a, Floats b) {
  return a > b ? a : b;
}

// 2^x to about one unit in the last place (degree 6 Chebyshev fit on [-0.5, 0.5]); exactly 0 below -126; NaN
// stays NaN.
inline Floats exp2(Floats x) {
  constexpr float kRoundShift = 12582912.0F;  // 1.5 * 2^23: adding it rounds to a whole number
  const Floats clipped = x > broadcast(127.0F) ? broadcast(127.0F) : x;
  const Floats shifted = clipped + kRoundShift;
  const Floats f = clipped - (shifted - kRoundShift);
  Floats p = broadcast(0.00015337577497120947F);
  p = p * f + 0.0013399859890341759F;
  p = p * f + 0.009618519805371761F;
  p = p * f + 0.05550329014658928F;
  p = p * f + 0.24022646248340607F;
  p = p * f + 0.6931471824645996F;
  p = p * f + 1.0F;
  const Ints exponent = reinterpret_cast<Ints>(shifted) << 23;
  const Floats scaled = reinterpret_cast<Floats>(reinterpret_cast<Ints>(p) + exponent);
  const Floats small_or_nan = x < broadcast(-126.0F) ? Floats{} : x;
  return x >= broadcast(-126.0F) ? scaled : small_or_nan;
}

// The bits of x rounded to nearest even bf16, in the upper half of each word.
inline Words bf16_high(Floats x) {
  const Words bits = reinterpret_cast<Words>(x);
  return (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000U;
}

#if defined(__AVX512F__)
inline Floats round_fp16(Floats x) {
  return reinterpret_cast<Floats>(
      _mm512_cvtph_ps(_mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT)));
}
#else
inline Floats round_fp16(Floats x) {
  return reinterpret_cast<Floats>(
      _mm256_cvtph_ps(_mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT)));
}
#endif

// x rounded to the format, still as fp32.
template <DType dtype>
inline Floats rounded(Floats x) {
  if constexpr (dtype == DType::kBf16) return reinterpret_cast<Floats>(bf16_high(x));
  if constexpr (dtype == DType::kFp16) return round_fp16(x);
  return x;
}

inline float widen_bf16(std::uint16_t bits) {
  const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

// Rounds to nearest even; NaN stays NaN.
inline std::uint16_t narrow_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// d elements of a row as fp32, zeros up to the padded d.
inline void widen_row(DType dtype, const void* row, std::int64_t d, float* to) {
  if (dtype == DType::kBf16) {
    const auto* from = static_cast<const std::uint16_t*>(row);
    for (std::int64_t c = 0; c < d; ++c) to[c] = widen_bf16(from[c]);
  } else if (dtype == DType::kFp16) {
    const auto* from = static_cast<const std::uint16_t*>(row);
    for (std::int64_t c = 0; c < d; ++c) to[c] = _cvtsh_ss(from[c]);
  } else {
    std::memcpy(to, row, static_cast<std::size_t>(d) * sizeof(float));
  }
  for (std::int64_t c = d; c < padded(d); ++c) to[c] = 0;
}

inline void narrow_row(DType dtype, const float* from, std::int64_t d, void* row) {
  if (dtype == DType::kBf16) {
    auto* to = static_cast<std::uint16_t*>(row);
    for (std::int64_t c = 0; c < d; ++c) to[c] = narrow_bf16(from[c]);
  } else if (dtype == DType::kFp16) {
    auto* to = static_cast<std::uint16_t*>(row);
    for (std::int64_t c = 0; c < d; ++c) to[c] = static_cast<std::uint16_t>(_cvtss_sh(from[c], 0));
  } else {
    std::memcpy(row, from, static_cast<std::size_t>(d) * sizeof(float));
  }
}

inline const void* row_of(Rows rows, DType dtype, std::int64_t row) {
  const std::int64_t bytes = dtype == DType::kFp32 ? 4 : 2;
  return static_cast<const std::byte*>(rows.data) + row * rows.stride * bytes;
}
inline void* row_of(MutableRows rows, DType dtype, std::int64_t row) {
  const std::int64_t bytes = dtype == DType::kFp32 ? 4 : 2;
  return static_cast<std::byte*>(rows.data) + row * rows.stride * bytes;
}

inline void store_rows(const float* source, std::int64_t rows, std::int64_t d, float scale, DType dtype,
                       MutableRows to) {
  alignas(64) float row[kMostHeadDim];
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t c = 0; c < d; ++c) row[c] = scale * source[i * padded(d) + c];
    narrow_row(dtype, row, d, row_of(to, dtype, i));
  }
}

}  // namespace
}  // namespace sink_attention::cpu
