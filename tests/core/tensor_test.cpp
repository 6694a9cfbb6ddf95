// SPDX-License-Identifier: Apache-2.0
#include "src/core/tensor.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "gtest/gtest.h"

namespace sinkscope {
namespace {

TEST(Tensor, IsNotGivenWithoutAShape) {
  EXPECT_FALSE(Tensor().given());
  EXPECT_TRUE(Tensor(DType::kFp32, {0}).given());
}

TEST(Tensor, IsZeroFilledAndAligned) {
  const Tensor tensor(DType::kFp64, {3, 5});

  EXPECT_EQ(tensor.size(), 15);
  EXPECT_EQ(tensor.bytes(), 120U);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.data()) % 64, 0U);
  for (const double value : tensor.widened()) EXPECT_EQ(value, 0);
}

TEST(Tensor, RoundsOnceToEveryFormatAndWidensExactly) {
  const std::array<double, 3> values = {1.0 / 3, -5, 1024};
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp64}) {
    const Tensor tensor = Tensor::rounded(dtype, {3}, values);
    for (std::int64_t i = 0; i < 3; ++i) {
      const double wanted = values[static_cast<std::size_t>(i)];
      EXPECT_NEAR(tensor.at(i), wanted, std::fabs(wanted) * unit_roundoff(dtype)) << name_of(dtype);
    }
    EXPECT_EQ(tensor.at(1), -5);
  }
  Tensor whole(DType::kInt64, {1});
  whole.set(0, 1LL << 40);
  EXPECT_EQ(whole.at(0), 0x1p40);
}

TEST(Tensor, WidensARun) {
  const std::array<double, 4> values = {1, 2, 3, 4};
  const Tensor tensor = Tensor::rounded(DType::kBf16, {2, 2}, values);

  std::array<double, 2> run{};
  tensor.widen(1, run);

  EXPECT_EQ(run, (std::array<double, 2>{2, 3}));
}

TEST(Tensor, RefusesShapesThatOverflow) {
  constexpr std::int64_t kHuge = std::int64_t{1} << 61;

  EXPECT_THROW(Tensor(DType::kFp32, {kHuge, 8}), std::invalid_argument);
  EXPECT_THROW(Tensor(DType::kFp64, {kHuge}), std::invalid_argument);  // the bytes overflow, not the elements
  EXPECT_THROW(Tensor(DType::kFp32, {-1}), std::invalid_argument);
  EXPECT_THROW(Tensor::rounded(DType::kFp32, {2}, std::array<double, 3>{}), std::invalid_argument);
}

TEST(Tensor, BitwiseEqualityComparesBytes) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  const std::array<double, 2> values = {kNaN, 0.0};
  const std::array<double, 2> other_zero = {kNaN, -0.0};
  const Tensor a = Tensor::rounded(DType::kFp32, {2}, values);

  EXPECT_TRUE(bitwise_equal(a, Tensor::rounded(DType::kFp32, {2}, values)));
  EXPECT_FALSE(bitwise_equal(a, Tensor::rounded(DType::kFp32, {2}, other_zero)));
  EXPECT_FALSE(bitwise_equal(a, Tensor::rounded(DType::kFp32, {1, 2}, values)));
  EXPECT_FALSE(bitwise_equal(Tensor(DType::kBf16, {2}), Tensor(DType::kFp16, {2})));
}

TEST(Tensor, PrintsItsShape) {
  EXPECT_EQ(shape_text(Tensor(DType::kFp32, {1, 8, 5}).shape()), "[1, 8, 5]");
}

}  // namespace
}  // namespace sinkscope
