// SPDX-License-Identifier: Apache-2.0
// This tree's formats in libtorch's terms.
#pragma once

#include <ATen/ATen.h>

#include "src/core/dtype.hpp"

namespace sinkscope::lab {

inline at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return at::kBFloat16;
    case DType::kFp16:
      return at::kHalf;
    case DType::kFp64:
      return at::kDouble;
    default:
      return at::kFloat;
  }
}

}  // namespace sinkscope::lab
