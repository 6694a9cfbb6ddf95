// SPDX-License-Identifier: Apache-2.0
// The production kernel in the training graph, on tensors where they lie: no copies through the host, nothing computed twice.
#pragma once

#include <ATen/ATen.h>

#include "src/core/dtype.hpp"
#include "src/lab/geometry.hpp"

namespace sinkscope::lab {

// As Attention, of q, k, v that are not rounded yet. Throws std::runtime_error with the kernel's refusal.
at::Tensor kernel_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& sinks, const Geometry& geometry, DType format, int threads);

}  // namespace sinkscope::lab
