// SPDX-License-Identifier: Apache-2.0
// Sizes, formats and strides of the tensors that torch hands over, checked before anything reads them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "tools/python/native/operator.hpp"

namespace sinkscope_python {

using torch::headeronly::ScalarType;

// Throws std::runtime_error("sinkscope: " + message) where the condition does not hold.
void require(bool condition, const std::string& message);

struct Sizes {
  std::int64_t b = 0, hq = 0, hkv = 0, sq = 0, sk = 0, d = 0;
  std::int32_t documents = 0;  // 0: not packed
};

// Where the dimensions of a [b, h, s, d] or [b, s, h, d] tensor are.
struct Layout {
  explicit Layout(bool bshd) : head(bshd ? 2 : 1), row(bshd ? 1 : 2) {}
  std::int64_t head, row;
};

// The sizes, after all tensors were checked to agree in shape, format and device.
Sizes checked_sizes(const Attention& attention);
void check_backward_inputs(const Attention& attention, const BackwardInputs& inputs, const Sizes& sizes);

// A new tensor of uninitialised elements on the device of `like`.
Tensor new_tensor(const Tensor& like, std::initializer_list<std::int64_t> shape, ScalarType dtype);
// As q (heads hq, rows sq), or as k (hkv, sk), contiguous in their layout; of no element where it is not wanted.
Tensor new_like(const Tensor& like, bool wanted);

}  // namespace sinkscope_python
