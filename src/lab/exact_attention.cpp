// SPDX-License-Identifier: Apache-2.0
#include "src/lab/exact_attention.hpp"

#include <ATen/core/grad_mode.h>
#include <limits>
#include <torch/csrc/autograd/autograd.h>
#include <vector>

#include "src/lab/attention.hpp"
#include "src/torch/host_tensor.hpp"

namespace sinkscope::lab {
namespace {

using torch::autograd::variable_list;
using torch_paths::from_torch;
using torch_paths::view_of;

// The score of a hidden key: finite, so that a row without keys has no NaN in its gradients.
constexpr double kHidden = -1e30;

// Scaled scores [b, hkv, group, sq, sk], the sinks beside them [1, hkv, group, 1, 1], and the keys' probabilities.
struct Scores {
  at::Tensor scores, sinks, lse, p;
};
Scores scores_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& sinks, const Geometry& geometry,
                 const at::Tensor& hidden) {
  const std::int64_t b = q.size(0), hq = q.size(1), s = q.size(2), d = q.size(3), hkv = k.size(1);
  const at::Tensor grouped = q.reshape({b, hkv, hq / hkv, s, d});
  Scores found;
  found.scores = at::matmul(grouped, k.unsqueeze(2).transpose(-1, -2)) * scale_of(q, geometry);
  found.scores = found.scores.masked_fill(hidden, kHidden);
  found.sinks = sinks.to(q.scalar_type()).view({1, hkv, hq / hkv, 1, 1});
  found.lse = at::logaddexp(at::logsumexp(found.scores, {-1}, true), found.sinks);
  found.p = at::exp(found.scores - found.lse).masked_fill(hidden, 0);
  return found;
}

}  // namespace

at::Tensor exact_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& sinks, const Geometry& geometry) {
  const at::Tensor hidden = hidden_keys(last_rows(q.size(2), k.size(2), q.device()), k.size(2), geometry);
  const Scores found = scores_of(q.to(at::kDouble), k.to(at::kDouble), sinks, geometry, hidden);
  return at::matmul(found.p, v.to(at::kDouble).unsqueeze(2)).reshape(q.sizes()).to(at::kFloat);
}

Path exact_path() {
  Path path;
  path.name = "exact";
  path.summary = "double precision, gradients too";
  path.backends = "libtorch";
  path.unsupported = [](const Case&) { return std::nullopt; };
  path.run = [](const Case& c, const PathOptions&) {
    const at::AutoGradMode differentiable(true);
    const auto leaf = [](const Tensor& t) {
      return view_of(t).to(at::kDouble, false, true).requires_grad_();
    };
    const at::Tensor q = leaf(c.q), k = leaf(c.k), v = leaf(c.v);
    const at::Tensor sinks = c.sinks.given() ? leaf(c.sinks)
                                             : at::full({q.size(1)}, -std::numeric_limits<double>::infinity(),
                                                        at::TensorOptions().dtype(at::kDouble));
    const AttentionShape& shape = c.problem.shape;
    const Geometry geometry{shape.window, shape.docs, shape.causal, shape.scale};
    const at::Tensor hidden = hidden_keys(last_rows(q.size(2), k.size(2), q.device()), k.size(2), geometry);
    const Scores found = scores_of(q, k, sinks, geometry, hidden);
    const at::Tensor out = at::matmul(found.p, v.unsqueeze(2)).reshape(q.sizes());
    PathRun run;
    run.backend = "libtorch float64";
    run.outputs.out = from_torch(out, DType::kFp32);
    const at::Tensor lse = found.lse.reshape({q.size(0), q.size(1), q.size(2)});
    run.outputs.lse = from_torch(lse, DType::kFp32);
    if (!c.dout.given()) return run;
    std::vector<at::Tensor> inputs = {q, k, v};
    if (c.sinks.given()) inputs.push_back(sinks);
    variable_list of = {out}, upstream = {view_of(c.dout).to(at::kDouble)};
    if (c.dlse.given()) {
      of.push_back(lse);
      upstream.push_back(view_of(c.dlse).to(at::kDouble));
    }
    const variable_list gradients = torch::autograd::grad(of, inputs, upstream);
    run.outputs.dq = from_torch(gradients[0], DType::kFp32);
    run.outputs.dk = from_torch(gradients[1], DType::kFp32);
    run.outputs.dv = from_torch(gradients[2], DType::kFp32);
    if (c.sinks.given()) run.outputs.dsinks = from_torch(gradients[3], DType::kFp32);
    return run;
  };
  return path;
}

}  // namespace sinkscope::lab
