// SPDX-License-Identifier: Apache-2.0
// Numbers of few digits, held in double: what a value comes to when it passes through a narrower format.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "src/core/dtype.hpp"

namespace sinkscope {

// tf32 is what tensor cores take of fp32 operands: fp16's digits with fp32's exponents, rounded or cut off.
enum class Narrow { kNone, kBf16, kFp16, kTf32, kTf32Cut, kFp32 };

inline Narrow narrow_of(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return Narrow::kBf16;
    case DType::kFp16:
      return Narrow::kFp16;
    case DType::kFp32:
      return Narrow::kFp32;
    default:
      return Narrow::kNone;
  }
}

// Digits of the significand, the leading one included.
inline constexpr int digits_of(Narrow format) {
  return format == Narrow::kBf16 ? 8 : format == Narrow::kFp32 ? 24 : 11;
}

// To nearest even, by the bits of the double; what is under the least normal number is left alone.
template <int digits>
inline double nearest(double x) {
  constexpr int kDropped = 53 - digits;
  std::uint64_t bits = std::bit_cast<std::uint64_t>(x);
  bits += (std::uint64_t{1} << (kDropped - 1)) - 1 + (bits >> kDropped & 1);
  return std::bit_cast<double>(bits >> kDropped << kDropped);
}

inline double nearest_fp16(double x) {
  constexpr double kLeastNormal = 0x1p-14, kMost = 65504;
  constexpr double kStep = 0x1.8p28;  // added, it leaves steps of 2^-24, those of subnormals
  if (std::fabs(x) < kLeastNormal) return (x + kStep) - kStep;
  const double rounded = nearest<11>(x);
  return std::fabs(rounded) <= kMost ? rounded : std::copysign(std::numeric_limits<double>::infinity(), x);
}

// x in the format; NaN and infinities stay.
inline double narrowed(double x, Narrow format) {
  if (!std::isfinite(x)) return x;
  switch (format) {
    case Narrow::kBf16:
      return nearest<8>(x);
    case Narrow::kFp16:
      return nearest_fp16(x);
    case Narrow::kTf32:
      return nearest<11>(x);
    case Narrow::kTf32Cut: {
      constexpr int kDropped = 42;
      return std::bit_cast<double>(std::bit_cast<std::uint64_t>(x) >> kDropped << kDropped);
    }
    case Narrow::kFp32:
      return nearest<24>(x);
    case Narrow::kNone:
      break;
  }
  return x;
}

// The distance of the format's neighbours at x.
inline double spacing_at(double x, Narrow format) {
  const int least = format == Narrow::kFp16 ? -14 : -126;
  const int exponent = x == 0 ? least : std::max(std::ilogb(x), least);
  return std::ldexp(1.0, exponent + 1 - digits_of(format));
}

}  // namespace sinkscope
