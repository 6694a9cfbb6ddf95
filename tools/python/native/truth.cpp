// SPDX-License-Identifier: Apache-2.0
// Double inputs: the truth that the kernel is judged by, so that gradcheck holds it to finite differences.
#include <algorithm>
#include <torch/csrc/stable/ops.h>

#include "reference/attention.hpp"
#include "tools/python/native/tensors.hpp"

namespace sinkscope_python {
namespace {

// The truth's tensors are [b, h, s, d] and contiguous.
Tensor as_truth(const Tensor& tensor, bool bshd) {
  return torch::stable::contiguous(bshd ? torch::stable::transpose(tensor, 1, 2) : tensor);
}

std::span<const double> span_of(const Tensor& tensor) {
  return {static_cast<const double*>(tensor.const_data_ptr()), static_cast<std::size_t>(tensor.numel())};
}

std::vector<std::int64_t> offsets_of(const std::optional<Tensor>& cu) {
  if (!cu) return {};
  const auto* data = static_cast<const std::int32_t*>(cu->const_data_ptr());
  return {data, data + cu->numel()};
}

struct Call {
  reference::Problem problem;
  Tensor q, k, v;
  std::optional<Tensor> sinks;

  Call(const Attention& a, const Sizes& n)
      : q(as_truth(a.q, a.bshd)), k(as_truth(a.k, a.bshd)), v(as_truth(a.v, a.bshd)) {
    if (a.sinks) sinks = torch::stable::contiguous(*a.sinks);
    problem = {n.b,
               n.hq,
               n.hkv,
               n.sq,
               n.sk,
               n.d,
               a.causal,
               a.window,
               a.scale,
               offsets_of(a.cu_seqlens_q),
               offsets_of(a.cu_seqlens_k)};
  }

  reference::Tensors run(std::span<const double> dout, std::span<const double> dlse) const {
    const reference::Inputs inputs{
        span_of(q), span_of(k), span_of(v), sinks ? span_of(*sinks) : std::span<const double>{}, dout, dlse};
    const reference::Options options{static_cast<int>(torch::stable::get_num_threads()), false};
    return reference::attention(problem, inputs, {}, options).value;
  }
};

void fill(const Tensor& tensor, const std::vector<double>& values) {
  require(static_cast<std::size_t>(tensor.numel()) == values.size(),
          "the truth gave " + std::to_string(values.size()) + " elements, wanted " +
              std::to_string(tensor.numel()));
  std::copy(values.begin(), values.end(), static_cast<double*>(tensor.mutable_data_ptr()));
}

// A tensor like `like` from contiguous [b, h, s, d] values.
Tensor from_truth(const Tensor& like, const std::vector<double>& values, bool bshd, bool wanted) {
  if (!wanted) return new_like(like, false);
  if (!bshd) {
    Tensor tensor = new_like(like, true);
    fill(tensor, values);
    return tensor;
  }
  const Tensor bhsd =
      new_tensor(like, {like.size(0), like.size(2), like.size(1), like.size(3)}, ScalarType::Double);
  fill(bhsd, values);
  return torch::stable::contiguous(torch::stable::transpose(bhsd, 1, 2));
}

}  // namespace

ForwardOutputs truth_forward(const Attention& a) {
  const Sizes n = checked_sizes(a);
  const reference::Tensors value = Call(a, n).run({}, {});
  const Tensor lse = new_tensor(a.q, {n.b, n.hq, n.sq}, ScalarType::Double);
  fill(lse, value.lse);
  return {from_truth(a.q, value.out, a.bshd, true), lse, new_tensor(a.q, {0}, ScalarType::Char)};
}

Gradients truth_backward(const Attention& a, const BackwardInputs& in) {
  const Sizes n = checked_sizes(a);
  check_backward_inputs(a, in, n);
  const Tensor dout = as_truth(in.dout, a.bshd);
  std::optional<Tensor> dlse;
  if (in.dlse) dlse = torch::stable::contiguous(*in.dlse);
  const reference::Tensors value =
      Call(a, n).run(span_of(dout), dlse ? span_of(*dlse) : std::span<const double>{});
  Gradients gradients{from_truth(a.q, value.dq, a.bshd, in.need_dq),
                      from_truth(a.k, value.dk, a.bshd, in.need_dk),
                      from_truth(a.v, value.dv, a.bshd, in.need_dv),
                      new_tensor(a.q, {in.need_dsinks ? n.hq : 0}, ScalarType::Double)};
  if (in.need_dsinks) fill(gradients.dsinks, value.dsinks);
  return gradients;
}

}  // namespace sinkscope_python
