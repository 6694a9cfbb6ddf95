// SPDX-License-Identifier: Apache-2.0
// What heads do in the forward.
#pragma once

#include <ATen/ATen.h>
#include <vector>

#include "src/core/dtype.hpp"
#include "src/lab/geometry.hpp"
#include "src/lab/lab.hpp"

namespace sinkscope::lab {

// Of one layer: [4, hq] fp32 where q is, the members of HeadFacts in their order. From fp32 scores of q and k rounded to the
// format; means over the batch and over rows, 64 evenly spread ones where there are more, so that looking costs little
// beside a step.
at::Tensor observed_heads(const at::Tensor& q, const at::Tensor& k, const at::Tensor& sinks,
                          const Geometry& geometry, DType format);

// [layers * hq], from what observed_heads() gave of each layer.
std::vector<HeadFacts> head_facts(const std::vector<at::Tensor>& layers);

}  // namespace sinkscope::lab
