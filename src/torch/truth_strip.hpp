// SPDX-License-Identifier: Apache-2.0
// One strip of the truth: some rows of all query heads of a group against the keys that they see, in double
// precision by ATen's products. The equations are those of reference/README.md, written anew.
#pragma once

#include <ATen/ATen.h>
#include <array>
#include <cstdint>

#include "src/torch/truth_document.hpp"

namespace sinkscope::torch_paths {

// The rows first .. first + positions of `heads` query heads, the heads outermost: m = heads * positions.
struct TruthRows {
  std::int64_t first, positions, heads;
  at::Tensor q, dout;      // [m, d] fp64; dout undefined: forward only
  at::Tensor dlse, sinks;  // [m, 1] fp64
};

struct StripResult {
  at::Tensor out, sigma_out, dq, sigma_dq;     // [m, d]
  at::Tensor lse, sigma_lse, p_sink, entropy;  // [m, 1]
  at::Tensor delta, sigma_delta;               // [m, 1]
  at::Tensor dsinks, sigma2_dsinks;  // [heads], of these rows alone, without the last terms of Eq. 20
};

// Memory for a strip's tensors of rows by keys, used again by every strip.
class StripBuffers {
 public:
  StripBuffers(std::int64_t elements, at::TensorOptions options) : elements_(elements), options_(options) {}
  // Buffer `which` as [rows, keys]; made on first use.
  at::Tensor get(std::size_t which, std::int64_t rows, std::int64_t keys);

 private:
  std::int64_t elements_;
  at::TensorOptions options_;
  std::array<at::Tensor, 6> buffers_;
};

// Computes a strip; adds its part of dk and dv to the document.
StripResult compute_strip(TruthDocument& document, const TruthRows& rows, StripBuffers& buffers);

}  // namespace sinkscope::torch_paths
