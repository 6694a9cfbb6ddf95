// SPDX-License-Identifier: Apache-2.0
// A layer's attention in the training graph: through any path of the tree, or in double precision.
#pragma once

#include <ATen/ATen.h>
#include <optional>
#include <string>
#include <vector>

#include "src/inputs/path.hpp"
#include "src/lab/entry.hpp"
#include "src/lab/geometry.hpp"
#include "src/lab/lab.hpp"

namespace sinkscope::lab {

// How attention is computed: q, k, v are rounded to `format` (their gradients pass as they are), all else depends on the path.
struct Attention {
  std::string name = "exact";
  std::optional<Path> path;  // of any other name
  std::vector<Planted> planted;
  mutable std::vector<bool> seen;  // of `planted`: those that showed in a call
  DType format = DType::kBf16;
  int threads = 0;

  // q [b, hq, sq, d], k and v [b, hkv, sk, d], all fp32 or all bf16, sinks [hq] fp32, to out [b, hq, sq, d] as q; differentiable, and
  // then this must live as long as the graph. The rows are those of the last keys. Throws InputError
  // where the path cannot compute this.
  at::Tensor operator()(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& sinks, const Geometry& geometry) const;
  void look_for_planted(const Case& c) const;  // notes which mistakes show in a call
  // After all layers: throws InputError naming a mistake that showed in none, which would pass for healthy.
  void expect_planted() const;
};

// What a scaled score is multiplied by: the geometry's scale, or 1 / sqrt(d).
double scale_of(const at::Tensor& q, const Geometry& geometry);

// [documents + 1] int32 from 0 to the rows on `device`; undefined where nothing is packed.
at::Tensor document_offsets(const Geometry& geometry, at::Device device);

// [sq] int64: where the rows of a call are among its keys, the last of them.
at::Tensor last_rows(std::int64_t sq, std::int64_t sk, at::Device device);

// [rows, sk] booleans: which key a row does not see, of the rows at these positions among the keys.
at::Tensor hidden_keys(const at::Tensor& rows, std::int64_t sk, const Geometry& geometry);

// `t` rounded to the format, in fp32; the gradient passes unrounded.
at::Tensor rounded_to(const at::Tensor& t, DType format);

// A call as a case, without its gradients' inputs: rounds to `format`. Tensors may be on any device.
Case case_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& sinks,
             const Geometry& geometry, DType format);

}  // namespace sinkscope::lab
