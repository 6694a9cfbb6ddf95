// SPDX-License-Identifier: Apache-2.0
#include "src/lab/device_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <torch/csrc/autograd/custom_function.h>
#include <tuple>
#include <vector>

#include "src/lab/attention.hpp"
#include "src/torch/host_tensor.hpp"

namespace sinkscope::lab {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// How flash attention 2 is called: [b, s, h, d], or [rows of all documents, h, d].
struct FlashShape {
  at::Tensor offsets;  // undefined: not packed
  std::int64_t most = 0;
  std::optional<std::int64_t> left, right;

  at::Tensor to_op(const at::Tensor& t) const {
    const at::Tensor rows_first = t.transpose(1, 2);
    return offsets.defined() ? rows_first.squeeze(0) : rows_first;
  }
  at::Tensor from_op(const at::Tensor& t) const {
    return (offsets.defined() ? t.unsqueeze(0) : t).transpose(1, 2);
  }
};

FlashShape shape_of(const at::Tensor& q, const Geometry& geometry, const at::Tensor& offsets) {
  FlashShape shape;
  shape.offsets = offsets;
  shape.most =
      geometry.docs.empty() ? q.size(2) : *std::max_element(geometry.docs.begin(), geometry.docs.end());
  if (geometry.window > 0) shape.left = geometry.window - 1;  // keys to the left of the row's own
  if (geometry.window > 0) shape.right = 0;
  return shape;
}

// ATen's flash attention 2: out and LSE of q, k, v alone. With sinks both are made those of attention with a sink before the backward
// uses them, and sinks get their gradient; without, the LSE passes no gradient.
struct FlashFunction : torch::autograd::Function<FlashFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const at::Tensor& sinks, const Geometry* geometry,
                               bool with_sink) {
    const FlashShape shape = shape_of(q, *geometry, document_offsets(*geometry, q.device()));
    const auto cu = shape.offsets.defined() ? std::optional(shape.offsets) : std::nullopt;
    auto [out, lse, state, unused, mask] = at::_flash_attention_forward(
        shape.to_op(q), shape.to_op(k), shape.to_op(v), cu, cu, shape.most, shape.most, 0.0, true, false,
        scale_of(q, *geometry), shape.left, shape.right);
    at::Tensor rows = shape.from_op(out);
    if (shape.offsets.defined()) lse = lse.unsqueeze(0);
    if (with_sink) {
      const at::Tensor sink = sinks.view({1, -1, 1});
      rows = rows.mul(at::sigmoid(lse - sink).unsqueeze(-1)).to(q.scalar_type());
      lse = at::logaddexp(lse, sink);
    }
    context->save_for_backward({q, k, v, sinks, rows, lse, state, unused, shape.offsets});
    context->saved_data["docs"] = geometry->docs;
    context->saved_data["window"] = geometry->window;
    context->saved_data["with_sink"] = with_sink;
    context->mark_non_differentiable({lse});
    return {rows, lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[4], &lse = saved[5];
    const Geometry geometry{context->saved_data["window"].toInt(), context->saved_data["docs"].toIntVector()};
    const FlashShape shape = shape_of(q, geometry, saved[8]);
    const at::Tensor dout = gradients[0].to(q.scalar_type());
    const at::Tensor cu = shape.offsets;
    auto [dq, dk, dv] = at::_flash_attention_backward(
        shape.to_op(dout), shape.to_op(q), shape.to_op(k), shape.to_op(v), shape.to_op(out),
        (cu.defined() ? lse.squeeze(0) : lse).contiguous(), cu, cu, shape.most, shape.most, 0.0, true,
        saved[6], saved[7], scale_of(q, geometry), shape.left, shape.right);
    at::Tensor dsinks;
    if (context->saved_data["with_sink"].toBool()) {
      const at::Tensor mass = at::exp(saved[3].view({1, -1, 1}) - lse);
      dsinks = -(mass * (dout.to(at::kFloat) * out.to(at::kFloat)).sum(-1)).sum(2).sum(0);
    }
    return {shape.from_op(dq), shape.from_op(dk), shape.from_op(dv), dsinks, at::Tensor(), at::Tensor()};
  }
};

at::Tensor flash(const std::string& path, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const at::Tensor& sinks, const Geometry& geometry) {
  const bool with_sink = path == "flash_attention_2_sink";
  const variable_list found = FlashFunction::apply(q, k, v, sinks, &geometry, with_sink);
  if (path != "flash_attention_2_rescaled") return found[0];
  return (found[0] * at::sigmoid(found[1] - sinks.view({1, -1, 1})).unsqueeze(-1)).to(q.scalar_type());
}

// transformers' GPT-OSS eager, op by op in the format; its autograd is libtorch's.
at::Tensor eager(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& sinks,
                 const Geometry& geometry, bool softmax_in_fp32) {
  const std::int64_t group = q.size(1) / k.size(1), b = q.size(0), s = q.size(2);
  const auto repeated = [&](const at::Tensor& t) { return t.repeat_interleave(group, 1); };
  at::Tensor scores = at::matmul(q, repeated(k).transpose(2, 3)) * scale_of(q, geometry);
  const at::Tensor hidden = hidden_keys(last_rows(s, k.size(2), q.device()), k.size(2), geometry);
  // transformers adds a mask; what it hides has probability 0 either way.
  scores = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  at::Tensor combined =
      at::cat({scores, sinks.to(q.scalar_type()).view({1, -1, 1, 1}).expand({b, q.size(1), s, 1})}, -1);
  // The maximum passes a gradient, as it does there: 0 but for rounding.
  combined = combined - std::get<0>(combined.max(-1, true));
  const at::Tensor p = at::softmax(combined, -1, softmax_in_fp32 ? at::kFloat : q.scalar_type());
  return at::matmul(p.slice(-1, 0, k.size(2)).to(q.scalar_type()), repeated(v));
}

}  // namespace

bool on_device(const std::string& path) {
  for (const char* known :
       {"flash_attention_2", "flash_attention_2_sink", "flash_attention_2_rescaled", "eager", "eager_fp32"})
    if (path == known) return true;
  return false;
}

at::Tensor device_attention(const std::string& path, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& sinks, const Geometry& geometry,
                            DType format) {
  const at::ScalarType type = torch_paths::scalar_type(format);
  const at::Tensor rq = q.to(type), rk = k.to(type), rv = v.to(type);
  const bool is_eager = path.starts_with("eager");
  const at::Tensor out = is_eager ? eager(rq, rk, rv, sinks, geometry, path == "eager_fp32")
                                  : flash(path, rq, rk, rv, sinks, geometry);
  return out.to(q.scalar_type());
}

}  // namespace sinkscope::lab
