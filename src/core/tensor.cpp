// SPDX-License-Identifier: Apache-2.0
#include "src/core/tensor.hpp"

#include <cstring>
#include <stdexcept>

#include "fmt/format.h"
#include "fmt/ranges.h"

namespace sinkscope {

Tensor::Tensor(DType dtype, std::vector<std::int64_t> shape)
    : dtype_(dtype), shape_(std::move(shape)), size_(1) {
  for (const std::int64_t extent : shape_) {
    if (extent < 0 || __builtin_mul_overflow(size_, extent, &size_)) {
      throw std::invalid_argument(fmt::format("a tensor of shape {} cannot be made", shape_text(shape_)));
    }
  }
  std::int64_t total_bytes = 0;
  if (__builtin_mul_overflow(size_, static_cast<std::int64_t>(size_of(dtype)), &total_bytes)) {
    throw std::invalid_argument(fmt::format("a tensor of shape {} cannot be made", shape_text(shape_)));
  }
  data_.resize(bytes());
}

double Tensor::at(std::int64_t i) const {
  double value = 0;
  widen(i, {&value, 1});
  return value;
}

void Tensor::widen(std::int64_t first, std::span<double> into) const {
  const auto copy = [&](auto* from, auto convert) {
    for (std::size_t i = 0; i < into.size(); ++i) into[i] = convert(from[i]);
  };
  const std::byte* at = data() + static_cast<std::size_t>(first) * size_of(dtype_);
  const auto identity = [](auto value) { return static_cast<double>(value); };
  switch (dtype_) {
    case DType::kBf16:
      return copy(reinterpret_cast<const std::uint16_t*>(at), widen_bf16);
    case DType::kFp16:
      return copy(reinterpret_cast<const std::uint16_t*>(at), widen_fp16);
    case DType::kFp32:
      return copy(reinterpret_cast<const float*>(at), identity);
    case DType::kFp64:
      return copy(reinterpret_cast<const double*>(at), identity);
    case DType::kInt32:
      return copy(reinterpret_cast<const std::int32_t*>(at), identity);
    case DType::kInt64:
      return copy(reinterpret_cast<const std::int64_t*>(at), identity);
  }
}

std::vector<double> Tensor::widened() const {
  std::vector<double> values(static_cast<std::size_t>(size_));
  widen(0, values);
  return values;
}

void Tensor::set(std::int64_t i, double value) {
  const auto index = static_cast<std::size_t>(i);
  switch (dtype_) {
    case DType::kBf16:
      as<std::uint16_t>()[index] = round_to_bf16(value);
      return;
    case DType::kFp16:
      as<std::uint16_t>()[index] = round_to_fp16(value);
      return;
    case DType::kFp32:
      as<float>()[index] = static_cast<float>(value);
      return;
    case DType::kFp64:
      as<double>()[index] = value;
      return;
    case DType::kInt32:
      as<std::int32_t>()[index] = static_cast<std::int32_t>(value);
      return;
    case DType::kInt64:
      as<std::int64_t>()[index] = static_cast<std::int64_t>(value);
      return;
  }
}

Tensor Tensor::rounded(DType dtype, std::vector<std::int64_t> shape, std::span<const double> values) {
  Tensor tensor(dtype, std::move(shape));
  if (static_cast<std::size_t>(tensor.size()) != values.size()) {
    throw std::invalid_argument(fmt::format("{} values for a tensor of shape {}, which has {} elements",
                                            values.size(), shape_text(tensor.shape()), tensor.size()));
  }
  for (std::int64_t i = 0; i < tensor.size(); ++i) tensor.set(i, values[static_cast<std::size_t>(i)]);
  return tensor;
}

bool bitwise_equal(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         (a.bytes() == 0 || std::memcmp(a.data(), b.data(), a.bytes()) == 0);
}

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace sinkscope
