// SPDX-License-Identifier: Apache-2.0
// The libtorch paths in the training graph of a GPU, on tensors where they lie: what src/torch computes on cases.
#pragma once

#include <ATen/ATen.h>
#include <string>

#include "src/core/dtype.hpp"
#include "src/lab/geometry.hpp"

namespace sinkscope::lab {

// Is `path` one of those that device_attention computes?
bool on_device(const std::string& path);

// flash_attention_2, _sink, _rescaled, eager or eager_fp32, of q, k, v that are not rounded yet.
at::Tensor device_attention(const std::string& path, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& sinks, const Geometry& geometry,
                            DType format);

}  // namespace sinkscope::lab
