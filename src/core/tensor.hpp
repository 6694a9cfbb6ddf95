// SPDX-License-Identifier: Apache-2.0
// A contiguous host tensor in its storage format. The one container that inputs and outputs travel in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/core/dtype.hpp"

namespace sinkscope {

// Row-major, 64-byte aligned. An empty tensor (no shape) means "not given". Copies copy.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::vector<std::int64_t> shape);  // zero-filled

  bool given() const { return !shape_.empty(); }
  DType dtype() const { return dtype_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::int64_t size() const { return size_; }  // elements
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * size_of(dtype_); }

  std::byte* data() { return data_.data(); }
  const std::byte* data() const { return data_.data(); }
  template <typename T>
  std::span<T> as() {
    return {reinterpret_cast<T*>(data()), static_cast<std::size_t>(size_)};
  }
  template <typename T>
  std::span<const T> as() const {
    return {reinterpret_cast<const T*>(data()), static_cast<std::size_t>(size_)};
  }

  // Element i as double (exact), and the same for a run of elements.
  double at(std::int64_t i) const;
  void widen(std::int64_t first, std::span<double> into) const;
  std::vector<double> widened() const;

  // Rounds values to the format, once.
  void set(std::int64_t i, double value);
  static Tensor rounded(DType dtype, std::vector<std::int64_t> shape, std::span<const double> values);

 private:
  template <typename T>
  struct AlignedAllocator {
    using value_type = T;
    AlignedAllocator() = default;
    template <typename U>
    AlignedAllocator(const AlignedAllocator<U>&) {}
    T* allocate(std::size_t n) {
      return static_cast<T*>(::operator new (n * sizeof(T), std::align_val_t{64}));
    }
    void deallocate(T* p, std::size_t) { ::operator delete (p, std::align_val_t{64}); }
    bool operator==(const AlignedAllocator&) const { return true; }
  };

  DType dtype_ = DType::kFp32;
  std::vector<std::int64_t> shape_;
  std::int64_t size_ = 0;
  std::vector<std::byte, AlignedAllocator<std::byte>> data_;
};

// Same dtype, shape and bytes (so NaN equals the same NaN).
bool bitwise_equal(const Tensor& a, const Tensor& b);

// "[1, 8, 512, 64]".
std::string shape_text(std::span<const std::int64_t> shape);

}  // namespace sinkscope
