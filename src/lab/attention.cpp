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
#include "src/lab/kernel_attention.hpp"
#include "src/torch/host_tensor.hpp"

namespace sinkscope::lab {
namespace {

using torch_paths::from_torch;
using torch_paths::scalar_type;
using torch_paths::view_of;

constexpr std::int64_t kObservedRows = 256;
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

at::Tensor hidden_keys(std::int64_t sq, std::int64_t sk, const Geometry& geometry, at::Device device) {
  const auto numbered = [&](std::int64_t from, std::int64_t to) {
    return at::arange(from, to, at::TensorOptions().device(device));
  };
  const at::Tensor back =
      numbered(sk - sq, sk).unsqueeze(1) - numbered(0, sk).unsqueeze(0);  // rows from a key to its row
  at::Tensor hidden = geometry.causal ? back < 0 : at::zeros_like(back, at::kBool);
  if (geometry.window > 0) hidden = hidden | (back >= geometry.window);
  if (geometry.docs.empty()) return hidden;
  std::vector<at::Tensor> numbers;
  for (std::size_t i = 0; i < geometry.docs.size(); ++i)
    numbers.push_back(
        at::full({geometry.docs[i]}, static_cast<double>(i), at::TensorOptions().device(device)));
  const at::Tensor document = at::cat(numbers);
  return hidden | (document.unsqueeze(1) != document.unsqueeze(0));
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

at::Tensor exact_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& sinks, const Geometry& geometry) {
  const at::Tensor hidden = hidden_keys(q.size(2), k.size(2), geometry, q.device());
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
    const auto leaf = [](const Tensor& t) { return from_host(t).to(at::kDouble).requires_grad_(); };
    const at::Tensor q = leaf(c.q), k = leaf(c.k), v = leaf(c.v);
    const at::Tensor sinks = c.sinks.given() ? leaf(c.sinks)
                                             : at::full({q.size(1)}, -std::numeric_limits<double>::infinity(),
                                                        at::TensorOptions().dtype(at::kDouble));
    const AttentionShape& shape = c.problem.shape;
    const Geometry geometry{shape.window, shape.docs, shape.causal, shape.scale};
    const at::Tensor hidden = hidden_keys(q.size(2), k.size(2), geometry, q.device());
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
    variable_list of = {out}, upstream = {from_host(c.dout).to(at::kDouble)};
    if (c.dlse.given()) {
      of.push_back(lse);
      upstream.push_back(from_host(c.dlse).to(at::kDouble));
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

std::vector<HeadFacts> head_facts(const at::Tensor& q, const at::Tensor& k, const at::Tensor& sinks,
                                  const Geometry& geometry) {
  const at::NoGradGuard guard;
  const std::int64_t rows = q.size(2), looked_at = std::min(rows, kObservedRows);
  const at::Tensor counted =
      at::arange(1, looked_at + 1, at::TensorOptions().dtype(at::kLong).device(q.device()));
  const at::Tensor which = at::floor_divide(counted * rows, looked_at) - 1;
  const at::Tensor hidden = hidden_keys(rows, k.size(2), geometry, q.device()).index_select(0, which);
  const Scores found = scores_of(q.index_select(2, which), k, sinks, geometry, hidden);
  const at::Tensor sink = at::exp(found.sinks - found.lse);
  const at::Tensor logs = (found.scores - found.lse).masked_fill(found.p == 0, 0);
  const at::Tensor entropy = -(found.p * logs).sum(-1, true) - sink * (found.sinks - found.lse);
  const auto per_head = [](const at::Tensor& t) {
    return t.mean({0, 3, 4}).flatten().to(at::kCPU, at::kDouble);
  };
  const at::Tensor mass = per_head(sink), gain = per_head(1 / (1 - sink)), nats = per_head(entropy);
  const at::Tensor largest = at::amax(found.scores, {0, 3, 4}).flatten().to(at::kCPU, at::kDouble);
  std::vector<HeadFacts> facts;
  for (std::int64_t h = 0; h < q.size(1); ++h)
    facts.push_back(
        {mass[h].item<double>(), gain[h].item<double>(), nats[h].item<double>(), largest[h].item<double>()});
  return facts;
}

}  // namespace sinkscope::lab
