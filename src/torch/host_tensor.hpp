// SPDX-License-Identifier: Apache-2.0
// Between this tree's tensors, on the host, and libtorch's.
#pragma once

#include <ATen/ATen.h>

#include "src/core/dtype.hpp"
#include "src/core/tensor.hpp"

namespace sinkscope::torch_paths {

at::ScalarType scalar_type(DType dtype);

// A copy in that format; waits for a GPU.
Tensor from_torch(const at::Tensor& tensor, DType dtype);

// The tensor's own bytes, which must outlive the view and are not to be written to; undefined where it is not given.
at::Tensor view_of(const Tensor& tensor);

}  // namespace sinkscope::torch_paths
