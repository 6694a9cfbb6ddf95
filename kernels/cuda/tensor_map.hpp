// SPDX-License-Identifier: Apache-2.0
// Tensors as the kernels take them: strides, and descriptors for the copy engine. Host side only.
#pragma once

#include <cstdint>
#include <cuda.h>

#include "kernels/sink_attention.h"

namespace sink_attention::cuda {

// The sizes of a tensor [b, h, s, d] beside its pointer and strides.
struct TensorSizes {
  std::int64_t b, h, s, d;
};

struct TensorBox {
  int rows;
  int heads = 1;
};

// Strides of dimensions of size 1 are ignored by being 0.
template <typename Tensor>
Tensor without_idle_strides(Tensor t, std::int64_t b, std::int64_t h, std::int64_t s) {
  if (b == 1) t.stride_b = 0;
  if (h == 1) t.stride_h = 0;
  if (s == 1) t.stride_s = 0;
  return t;
}

// A map of the tensor whose boxes are `box.rows` rows (at most 256) of `box.heads` heads, of 64 elements each, 128-byte
// swizzled; rows outside the tensor read as zeros. `name` is for the message. The tensor must have passed check_tensor().
Status make_tensor_map(CUtensorMap& map, const ConstTensor& tensor, const TensorSizes& sizes, DType dtype,
                       const TensorBox& box, const char* name);

}  // namespace sink_attention::cuda
