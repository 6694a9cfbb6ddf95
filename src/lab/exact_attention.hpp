// SPDX-License-Identifier: Apache-2.0
// Attention in double precision: what every other path is measured against.
#pragma once

#include <ATen/ATen.h>

#include "src/inputs/path.hpp"
#include "src/lab/geometry.hpp"

namespace sinkscope::lab {

// Softmax attention with a sink, in float64 with float64 gradients; shapes as Attention's, out in fp32.
at::Tensor exact_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& sinks, const Geometry& geometry);

// The same as a path on cases, so that faults can be planted around it. Its outputs are fp32.
Path exact_path();

}  // namespace sinkscope::lab
