// SPDX-License-Identifier: Apache-2.0
// Conversions of the 16-bit formats, over every value and every midpoint between neighbours.
#include "src/core/dtype.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "gtest/gtest.h"

namespace sinkscope {
namespace {

struct Format {
  const char* name;
  double (*widen)(std::uint16_t);
  std::uint16_t (*round)(double);
  int significand_bits;
  int bias;
};
constexpr Format kBf16 = {"bf16", widen_bf16, round_to_bf16, 7, 127};
constexpr Format kFp16 = {"fp16", widen_fp16, round_to_fp16, 10, 15};

std::uint16_t infinity_of(const Format& format) {
  return static_cast<std::uint16_t>(0x7FFF >> format.significand_bits << format.significand_bits);
}

// The definition of IEEE 754, 3.4.
double value_of(const Format& format, std::uint16_t bits) {
  const int fraction = bits & ((1 << format.significand_bits) - 1);
  const int exponent = (bits & 0x7FFF) >> format.significand_bits;
  const double hidden = exponent == 0 ? 0 : 1;
  const double significand = hidden + std::ldexp(fraction, -format.significand_bits);
  const double magnitude = std::ldexp(significand, std::max(exponent, 1) - format.bias);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

class SmallFormats : public testing::TestWithParam<Format> {};

TEST_P(SmallFormats, EveryValueWidensExactlyAndComesBack) {
  const Format& format = GetParam();
  for (int i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const std::uint16_t magnitude = bits & 0x7FFF;
    const double wide = format.widen(bits);
    if (magnitude > infinity_of(format)) {
      ASSERT_TRUE(std::isnan(wide)) << format.name << " " << bits;
      ASSERT_GT(format.round(wide) & 0x7FFF, infinity_of(format)) << format.name << " " << bits;
      continue;
    }
    if (magnitude == infinity_of(format)) {
      ASSERT_EQ(std::isinf(wide), true) << format.name << " " << bits;
    } else {
      ASSERT_EQ(wide, value_of(format, bits)) << format.name << " " << bits;
    }
    ASSERT_EQ(std::signbit(wide), (bits & 0x8000) != 0) << format.name << " " << bits;
    ASSERT_EQ(format.round(wide), bits) << format.name << " " << bits;
  }
}

// A midpoint goes to the even neighbour; the next double on either side of it goes to its own neighbour. The
// neighbour of the largest finite value is the power of two that rounds to infinity.
TEST_P(SmallFormats, HalfwayGoesToEvenAndTheNextDoubleDoesNot) {
  const Format& format = GetParam();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (int i = 0; i < infinity_of(format); ++i) {
    const auto low = static_cast<std::uint16_t>(i);
    const auto high = static_cast<std::uint16_t>(i + 1);
    const double middle = (value_of(format, low) + value_of(format, high)) / 2;
    const std::uint16_t even = i % 2 == 0 ? low : high;
    ASSERT_EQ(format.round(middle), even) << format.name << " " << i;
    ASSERT_EQ(format.round(std::nextafter(middle, 0.0)), low) << format.name << " " << i;
    ASSERT_EQ(format.round(std::nextafter(middle, kInfinity)), high) << format.name << " " << i;
    ASSERT_EQ(format.round(-middle), even | 0x8000) << format.name << " " << i;
  }
}

TEST_P(SmallFormats, FarOutsideTheRange) {
  const Format& format = GetParam();

  EXPECT_EQ(format.round(std::numeric_limits<double>::max()), infinity_of(format));
  EXPECT_EQ(format.round(-1e300), infinity_of(format) | 0x8000);
  EXPECT_EQ(format.round(std::numeric_limits<double>::denorm_min()), 0);
  EXPECT_EQ(format.round(-1e-300), 0x8000);
}

INSTANTIATE_TEST_SUITE_P(Bits, SmallFormats, testing::Values(kBf16, kFp16),
                         [](const auto& test) { return std::string(test.param.name); });

// 1 + 2^-8 + 2^-30 lies above a midpoint of bf16, but fp32 rounds it onto the midpoint.
TEST(DType, DoesNotRoundTwice) {
  const double value = 1 + 0x1p-8 + 0x1p-30;

  EXPECT_EQ(round_to_bf16(value), 0x3F81);
  EXPECT_EQ(round_to_bf16(static_cast<double>(static_cast<float>(value))), 0x3F80);
}

TEST(DType, NamesComeBack) {
  for (const DType dtype :
       {DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp64, DType::kInt32, DType::kInt64}) {
    EXPECT_EQ(dtype_from_name(name_of(dtype)), dtype);
  }
  EXPECT_FALSE(dtype_from_name("fp8").has_value());
}

TEST(DType, UnitRoundoffIsHalfTheStepAboveOne) {
  EXPECT_EQ(unit_roundoff(DType::kBf16), (widen_bf16(round_to_bf16(1) + 1) - 1) / 2);
  EXPECT_EQ(unit_roundoff(DType::kFp16), (widen_fp16(round_to_fp16(1) + 1) - 1) / 2);
  EXPECT_EQ(unit_roundoff(DType::kFp32), std::numeric_limits<float>::epsilon() / 2);
  EXPECT_EQ(unit_roundoff(DType::kFp64), std::numeric_limits<double>::epsilon() / 2);
}

}  // namespace
}  // namespace sinkscope
