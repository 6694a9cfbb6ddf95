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

// Rounds to nearest even in steps of the format's last place at `value`; the sign, infinities and NaN are put
// in afterwards. Both formats have 16 bits, so the largest finite significand follows from significand_bits.
std::uint16_t round_to(double value, SmallFormat format) {
  const int exponent_bits = 15 - format.significand_bits;
  const auto infinity = static_cast<std::uint16_t>(((1U << exponent_bits) - 1U) << format.significand_bits);
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000U : 0U);
  if (std::isnan(value))
    return static_cast<std::uint16_t>(sign | infinity | (1U << (format.significand_bits - 1)));
  const double magnitude = std::fabs(value);
  if (std::isinf(magnitude)) return sign | infinity;
  if (magnitude == 0) return sign;

  const int exponent = std::max(std::ilogb(magnitude), format.min_exponent);
  const double steps = std::nearbyint(std::ldexp(magnitude, format.significand_bits - exponent));
  // `steps` counts units of the last place from zero of this binade; for normal numbers it carries the hidden
  // bit, which the addition below turns into the exponent, as a carry out of the significand does.
  const auto biased = static_cast<std::uint64_t>(exponent - format.min_exponent) << format.significand_bits;
  const std::uint64_t bits = biased + static_cast<std::uint64_t>(steps);
  return bits >= infinity ? static_cast<std::uint16_t>(sign | infinity)
                          : static_cast<std::uint16_t>(sign | bits);
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
  const int exponent = (bits >> 10) & 0x1F;
  const int significand = bits & 0x3FF;
  double magnitude = 0;
  if (exponent == 0x1F) {
    magnitude = significand == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(significand, -24);
  } else {
    magnitude = std::ldexp(significand + 0x400, exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

std::uint16_t round_to_bf16(double value) {
  return round_to(value, kBf16Format);
}
std::uint16_t round_to_fp16(double value) {
  return round_to(value, kFp16Format);
}

}  // namespace sinkscope
