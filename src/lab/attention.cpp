// SPDX-License-Identifier: Apache-2.0
#include "src/lab/attention.hpp"

#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "src/core/error.hpp"
#include "src/lab/device_attention.hpp"
#include "src/lab/exact_attention.hpp"
#include "src/lab/kernel_attention.hpp"
#include "src/torch/host_tensor.hpp"

namespace sinkscope::lab {
namespace {

using torch_paths::from_torch;
using torch_paths::scalar_type;
using torch_paths::view_of;

std::vector<std::int64_t> sizes(const at::Tensor& t) {
  return t.sizes().vec();
}

at::Tensor from_host(const Tensor& tensor) {
  return view_of(tensor).to(at::kFloat, false, true);
}

Outputs run_path(const Path& path, const Case& c, int threads) {
  if (const auto reason = path.unsupported(c))
    throw InputError("path " + path.name + " cannot train this model: " + *reason);
  PathOptions options;
  options.threads = threads;
  return path.run(c, options).outputs;
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A path in the graph. The backward runs the path with its forward once more: a path is one call from inputs to gradients.
struct PathFunction : torch::autograd::Function<PathFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& sinks, const Attention* attention,
                            const Geometry* geometry) {
    context->save_for_backward({q, k, v, sinks});
    context->saved_data["path"] = reinterpret_cast<std::int64_t>(attention);
    context->saved_data["docs"] = geometry->docs;
    context->saved_data["window"] = geometry->window;
    Case c = case_of(q, k, v, sinks, *geometry, attention->format);
    // A fault of the gradients is there only where gradients are asked for.
    if (!attention->planted.empty()) c.dout = Tensor(attention->format, sizes(q));
    attention->look_for_planted(c);
    return from_host(run_path(*attention->path, c, attention->threads).out).to(q.device(), q.scalar_type());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto* attention = reinterpret_cast<const Attention*>(context->saved_data["path"].toInt());
    const Geometry geometry{context->saved_data["window"].toInt(), context->saved_data["docs"].toIntVector()};
    Case c = case_of(saved[0], saved[1], saved[2], saved[3], geometry, attention->format);
    c.dout = from_torch(gradients[0], attention->format);
    const Outputs outputs = run_path(*attention->path, c, attention->threads);
    const auto back = [](const Tensor& t, const at::Tensor& like) {
      return t.given() ? from_host(t).to(like.device(), like.scalar_type()) : at::zeros_like(like);
    };
    return {back(outputs.dq, saved[0]),
            back(outputs.dk, saved[1]),
            back(outputs.dv, saved[2]),
            back(outputs.dsinks, saved[3]),
            at::Tensor(),
            at::Tensor()};
  }
};

}  // namespace

double scale_of(const at::Tensor& q, const Geometry& geometry) {
  return geometry.scale != 0 ? geometry.scale : 1 / std::sqrt(static_cast<double>(q.size(3)));
}

at::Tensor document_offsets(const Geometry& geometry, at::Device device) {
  if (geometry.docs.empty()) return {};
  std::vector<int> offsets = {0};
  for (const std::int64_t length : geometry.docs)
    offsets.push_back(offsets.back() + static_cast<int>(length));
  return at::tensor(offsets, at::kInt).to(device);
}

at::Tensor last_rows(std::int64_t sq, std::int64_t sk, at::Device device) {
  return at::arange(sk - sq, sk, at::TensorOptions().device(device));
}

at::Tensor hidden_keys(const at::Tensor& rows, std::int64_t sk, const Geometry& geometry) {
  const at::Device device = rows.device();
  const at::Tensor keys = at::arange(sk, at::TensorOptions().device(device));
  const at::Tensor back = rows.unsqueeze(1) - keys.unsqueeze(0);  // from a key to the row
  at::Tensor hidden = geometry.causal ? back < 0 : at::zeros_like(back, at::kBool);
  if (geometry.window > 0) hidden = hidden | (back >= geometry.window);
  if (geometry.docs.empty()) return hidden;
  const at::Tensor lengths = at::tensor(geometry.docs).to(device);
  const at::Tensor document = at::repeat_interleave(lengths);  // its number, by position
  return hidden | (document.index_select(0, rows).unsqueeze(1) != document.unsqueeze(0));
}

at::Tensor rounded_to(const at::Tensor& t, DType format) {
  if (format == DType::kFp32) return t;
  const at::Tensor plain = t.detach();
  return plain.to(scalar_type(format)).to(at::kFloat) + (t - plain);
}

Case case_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& sinks,
             const Geometry& geometry, DType format) {
  Case c;
  c.name = "lab";
  AttentionShape& s = c.problem.shape;
  s.b = q.size(0);
  s.hq = q.size(1);
  s.hkv = k.size(1);
  s.sq = q.size(2);
  s.sk = k.size(2);
  s.d = q.size(3);
  s.dtype = format;
  s.window = geometry.window < s.sk ? geometry.window : 0;
  s.docs = geometry.docs;
  s.scale = scale_of(q, geometry);
  c.problem.residual = format != DType::kFp32;
  c.q = from_torch(q, format);
  c.k = from_torch(k, format);
  c.v = from_torch(v, format);
  if (sinks.defined()) c.sinks = from_torch(sinks, DType::kFp32);
  return c;
}

at::Tensor Attention::operator()(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor& sinks, const Geometry& geometry) const {
  if (name == "sink_kernel") return kernel_attention(q, k, v, sinks, geometry, format, threads);
  if (q.is_cuda() && on_device(name)) return device_attention(name, q, k, v, sinks, geometry, format);
  const at::Tensor rq = rounded_to(q, format), rk = rounded_to(k, format), rv = rounded_to(v, format);
  const at::Tensor out = path ? PathFunction::apply(rq, rk, rv, sinks, this, &geometry)
                              : exact_attention(rq, rk, rv, sinks, geometry);
  return out.to(q.scalar_type());
}

void Attention::look_for_planted(const Case& c) const {
  seen.resize(planted.size());
  for (std::size_t i = 0; i < planted.size(); ++i)
    if (!planted[i].invisible(c)) seen[i] = true;
}

void Attention::expect_planted() const {
  for (std::size_t i = 0; i < seen.size(); ++i)
    if (!seen[i])
      throw InputError("path is " + name + ", wanted a mistake that shows in a layer of this model: " +
                       planted[i].name + " shows in none");
}

}  // namespace sinkscope::lab
