// SPDX-License-Identifier: Apache-2.0
// The operators' schemas. Fake kernels and autograd are registered in Python (sinkscope/_operator.py): the stable ABI
// has none.
#include <torch/csrc/stable/library.h>

#include "tools/python/native/operator.hpp"
#include "tools/python/native/tensors.hpp"

namespace sinkscope_python {
namespace {

using Optional = std::optional<Tensor>;

bool is_for_truth(const Tensor& q) {
  return q.is_cpu() && q.scalar_type() == ScalarType::Double;
}

std::tuple<Tensor, Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Optional& sinks, const Optional& cu_seqlens_q,
                                                     const Optional& cu_seqlens_k, bool causal,
                                                     double sm_scale, std::int64_t bandwidth, bool bshd,
                                                     bool with_residual) {
  const Attention a{q, k, v, sinks, cu_seqlens_q, cu_seqlens_k, causal, sm_scale, bandwidth, bshd};
  const ForwardOutputs f = is_for_truth(q) ? truth_forward(a) : kernel_forward(a, with_residual);
  return {f.out, f.lse, f.residual};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& dout, const Optional& dlse, const Tensor& q, const Tensor& k, const Tensor& v,
    const Optional& sinks, const Tensor& out, const Tensor& lse, const Optional& residual,
    const Optional& cu_seqlens_q, const Optional& cu_seqlens_k, bool causal, double sm_scale,
    std::int64_t bandwidth, bool bshd, bool need_dq, bool need_dk, bool need_dv, bool need_dsinks) {
  const Attention a{q, k, v, sinks, cu_seqlens_q, cu_seqlens_k, causal, sm_scale, bandwidth, bshd};
  const BackwardInputs in{dout, dlse, out, lse, residual, need_dq, need_dk, need_dv, need_dsinks};
  require(!need_dsinks || sinks.has_value(), "dsinks are wanted of attention without sinks");
  const Gradients g = is_for_truth(q) ? truth_backward(a, in) : kernel_backward(a, in);
  return {g.dq, g.dk, g.dv, g.dsinks};
}

STABLE_TORCH_LIBRARY(sinkscope, m) {
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? cu_seqlens_q, Tensor? "
      "cu_seqlens_k, "
      "bool causal, float sm_scale, int bandwidth, bool bshd, bool with_residual) "
      "-> (Tensor out, Tensor lse, Tensor residual)");
  m.def(
      "attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor "
      "out, "
      "Tensor lse, Tensor? residual, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, bool causal, float "
      "sm_scale, "
      "int bandwidth, bool bshd, bool need_dq, bool need_dk, bool need_dv, bool need_dsinks) "
      "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dsinks)");
  m.def("backends() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sinkscope, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

STABLE_TORCH_LIBRARY_IMPL(sinkscope, CUDA, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

STABLE_TORCH_LIBRARY_IMPL(sinkscope, CompositeExplicitAutograd, m) {
  m.impl("backends", TORCH_BOX(&backends));
}

}  // namespace
}  // namespace sinkscope_python
