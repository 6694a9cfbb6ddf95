// SPDX-License-Identifier: Apache-2.0
#include "src/core/dtype.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

namespace sinkscope {
namespace {

struct FormatInfo {
  DType dtype;
  std::string_view name;
  std::size_t bytes;
  double unit_roundoff;
  double underflow;
};

constexpr std::array kFormats = {
    FormatInfo{DType::kBf16, "bf16", 2, 0x1p-8, 0x1p-126},
    FormatInfo{DType::kFp16, "fp16", 2, 0x1p-11, 0x1p-25},
    FormatInfo{DType::kFp32, "fp32", 4, 0x1p-24, 0x1p-126},
    FormatInfo{DType::kFp64, "fp64", 8, 0x1p-53, 0x1p-1022},
    FormatInfo{DType::kInt32, "i32", 4, 0, 0},
    FormatInfo{DType::kInt64, "i64", 8, 0, 0},
};

const FormatInfo& info(DType dtype) {
  return kFormats[static_cast<std::size_t>(dtype)];
}

// A 16-bit binary format: bits of the stored significand and the least normal exponent.
struct SmallFormat {
  int significand_bits;
  int min_exponent;
};
constexpr SmallFormat kBf16Format = {7, -126};
constexpr SmallFormat kFp16Format = {10, -14};

// Rounds to nearest even, in the bits of the double. Both formats have 16 bits, so everything follows from the
// size of the significand.
std::uint16_t round_to(double value, SmallFormat format) {
  const int exponent_bits = 15 - format.significand_bits;
  const auto infinity = static_cast<std::uint16_t>(((1U << exponent_bits) - 1U) << format.significand_bits);
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000U : 0U);
  if (std::isnan(value))
    return static_cast<std::uint16_t>(sign | infinity | (1U << (format.significand_bits - 1)));
  const std::uint64_t magnitude = std::bit_cast<std::uint64_t>(value) & ~(std::uint64_t{1} << 63);
  // A subnormal of the format: in steps of its least value.
  const std::uint64_t least_normal = static_cast<std::uint64_t>(1023 + format.min_exponent) << 52;
  if (magnitude < least_normal) {
    const double step = std::ldexp(1.0, format.min_exponent - format.significand_bits);
    return sign | static_cast<std::uint16_t>(std::nearbyint(std::fabs(value) / step));
  }
  // A carry out of the significand runs into the exponent, as it should; infinity ends up beyond `infinity`.
  const int shift = 52 - format.significand_bits;
  const std::uint64_t odd = magnitude >> shift & 1;
  std::uint64_t bits = (magnitude + (std::uint64_t{1} << (shift - 1)) - 1 + odd) >> shift;
  bits -= static_cast<std::uint64_t>(1023 + format.min_exponent - 1) << format.significand_bits;
  return sign | static_cast<std::uint16_t>(std::min<std::uint64_t>(bits, infinity));
}

}  // namespace

std::size_t size_of(DType dtype) {
  return info(dtype).bytes;
}
std::string_view name_of(DType dtype) {
  return info(dtype).name;
}
double unit_roundoff(DType dtype) {
  return info(dtype).unit_roundoff;
}
double underflow_unit(DType dtype) {
  return info(dtype).underflow;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const FormatInfo& format : kFormats) {
    if (format.name == name) return format.dtype;
  }
  return std::nullopt;
}

double widen_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

double widen_fp16(std::uint16_t bits) {
  const std::uint64_t exponent = (bits >> 10) & 0x1F;
  const std::uint64_t significand = bits & 0x3FF;
  const std::uint64_t sign = static_cast<std::uint64_t>(bits & 0x8000) << 48;
  if (exponent == 0) {
    const double magnitude = static_cast<double>(significand) * 0x1p-24;
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint64_t wide = exponent == 0x1F ? 0x7FF : exponent + 1023 - 15;
  return std::bit_cast<double>(sign | wide << 52 | significand << 42);
}

std::uint16_t round_to_bf16(double value) {
  return round_to(value, kBf16Format);
}
std::uint16_t round_to_fp16(double value) {
  return round_to(value, kFp16Format);
}

}  // namespace sinkscope
