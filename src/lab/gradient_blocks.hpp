// SPDX-License-Identifier: Apache-2.0
// A gradient cut into blocks, whose squared norms add up.
#pragma once

#include <ATen/ATen.h>
#include <vector>

#include "src/lab/model.hpp"

namespace sinkscope::lab {

// The blocks of a model in order: of each layer q, k, v and sink by head, then other; outside last.
std::vector<Block> blocks_of(const ModelShape& shape);

// <a, b> of each block, summed in float64; `a` and `b` are gradients in the order of the model's parameters.
std::vector<double> dot_by_block(const Model& model, const std::vector<at::Tensor>& a,
                                 const std::vector<at::Tensor>& b);

}  // namespace sinkscope::lab
