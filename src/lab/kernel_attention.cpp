// SPDX-License-Identifier: Apache-2.0
#include "src/lab/kernel_attention.hpp"

#include <ATen/core/grad_mode.h>
#include <stdexcept>
#include <string>
#include <torch/csrc/autograd/custom_function.h>
#include <vector>

#include "kernels/sink_attention.h"
#include "src/lab/attention.hpp"
#include "src/torch/host_tensor.hpp"

namespace sinkscope::lab {
namespace {

namespace sa = sink_attention;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

sa::DType kernel_dtype(at::ScalarType type) {
  if (type == at::kBFloat16) return sa::DType::kBf16;
  return type == at::kHalf ? sa::DType::kFp16 : sa::DType::kFp32;
}

template <typename Strided>
Strided strided(const at::Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

void expect(const sa::Status& status) {
  if (!status.ok()) throw std::runtime_error(std::string("sink_kernel: ") + status.message);
}

// The kernel's calls on the device of a tensor. libtorch computes on the legacy default stream unless it is told otherwise.
struct Backend {
  bool cuda;
  sa::cpu::Options options;

  std::size_t forward_bytes(const sa::Problem& p) const {
#ifdef SINKSCOPE_WITH_CUDA
    if (cuda) return sa::cuda::forward_workspace_bytes(p);
#endif
    return sa::cpu::forward_workspace_bytes(p, options);
  }
  std::size_t backward_bytes(const sa::Problem& p) const {
#ifdef SINKSCOPE_WITH_CUDA
    if (cuda) return sa::cuda::backward_workspace_bytes(p);
#endif
    return sa::cpu::backward_workspace_bytes(p, options);
  }
  void forward(const sa::ForwardParams& f) const {
#ifdef SINKSCOPE_WITH_CUDA
    if (cuda) return expect(sa::cuda::forward(f, nullptr));
#endif
    if (cuda) throw std::runtime_error("sink_kernel: this build has no CUDA backend");
    expect(sa::cpu::forward(f, options));
  }
  void backward(const sa::BackwardParams& w) const {
#ifdef SINKSCOPE_WITH_CUDA
    if (cuda) return expect(sa::cuda::backward(w, nullptr));
#endif
    expect(sa::cpu::backward(w, options));
  }
};

at::Tensor bytes(std::size_t count, const at::Tensor& like) {
  return at::empty({static_cast<std::int64_t>(count)}, like.options().dtype(at::kByte));
}

// [b, h, s, d] with d contiguous, in memory [b, s, h, d].
at::Tensor empty_like_rows(const at::Tensor& t) {
  return at::empty({t.size(0), t.size(2), t.size(1), t.size(3)}, t.options()).transpose(1, 2);
}

sa::Problem problem_of(const at::Tensor& q, const at::Tensor& k, const Geometry& geometry,
                       const at::Tensor& offsets) {
  sa::Problem p;
  p.dtype = kernel_dtype(q.scalar_type());
  p.b = q.size(0);
  p.hq = q.size(1);
  p.hkv = k.size(1);
  p.sq = q.size(2);
  p.sk = k.size(2);
  p.d = q.size(3);
  p.scale = static_cast<float>(scale_of(q, geometry));
  p.window = geometry.window;
  if (offsets.defined()) {
    p.documents = static_cast<std::int32_t>(offsets.numel() - 1);
    p.cu_seqlens_q = p.cu_seqlens_k = offsets.const_data_ptr<int>();
  }
  return p;
}

struct KernelFunction : torch::autograd::Function<KernelFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& sinks, const Geometry* geometry,
                            at::ScalarType format, std::int64_t threads) {
    const auto rounded = [&](const at::Tensor& t) {
      const at::Tensor r = t.to(format);
      return r.stride(3) == 1 ? r : r.contiguous();
    };
    const at::Tensor rq = rounded(q), rk = rounded(k), rv = rounded(v), sink = sinks.contiguous();
    const at::Tensor offsets = document_offsets(*geometry, q.device());
    const Backend backend{q.is_cuda(), {.threads = static_cast<int>(threads)}};
    const at::Tensor out = empty_like_rows(rq);
    const at::Tensor lse = at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat));
    const at::Tensor residual = format == at::kFloat ? at::Tensor()
                                                     : at::empty(q.sizes(), q.options().dtype(at::kChar),
                                                                 at::MemoryFormat::Contiguous);
    sa::ForwardParams f;
    f.problem = problem_of(rq, rk, *geometry, offsets);
    f.q = strided<sa::ConstTensor>(rq);
    f.k = strided<sa::ConstTensor>(rk);
    f.v = strided<sa::ConstTensor>(rv);
    f.sinks = sink.const_data_ptr();
    f.out = strided<sa::MutableTensor>(out);
    f.lse = lse.mutable_data_ptr<float>();
    if (residual.defined()) f.residual = residual.mutable_data_ptr<std::int8_t>();
    const at::Tensor workspace = bytes(backend.forward_bytes(f.problem), q);
    f.workspace = workspace.data_ptr();
    f.workspace_bytes = static_cast<std::size_t>(workspace.numel());
    backend.forward(f);
    context->save_for_backward({rq, rk, rv, sink, out, lse, residual, offsets});
    context->saved_data["window"] = geometry->window;
    context->saved_data["threads"] = threads;
    context->saved_data["type"] = static_cast<std::int64_t>(q.scalar_type());
    return out.to(q.scalar_type());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[4], &residual = saved[6];
    const Backend backend{q.is_cuda(), {.threads = static_cast<int>(context->saved_data["threads"].toInt())}};
    at::Tensor dout = gradients[0].to(q.scalar_type());
    if (dout.stride(3) != 1) dout = dout.contiguous();
    const at::Tensor dq = empty_like_rows(q), dk = empty_like_rows(k), dv = empty_like_rows(v);
    const at::Tensor dsinks = at::empty_like(saved[3]);
    sa::BackwardParams w;
    w.problem = problem_of(q, k, {context->saved_data["window"].toInt()}, saved[7]);
    w.q = strided<sa::ConstTensor>(q);
    w.k = strided<sa::ConstTensor>(k);
    w.v = strided<sa::ConstTensor>(v);
    w.sinks = saved[3].const_data_ptr();
    w.out = strided<sa::ConstTensor>(out);
    w.lse = saved[5].const_data_ptr<float>();
    if (residual.defined()) w.residual = residual.const_data_ptr<std::int8_t>();
    w.dout = strided<sa::ConstTensor>(dout);
    w.dq = strided<sa::MutableTensor>(dq);
    w.dk = strided<sa::MutableTensor>(dk);
    w.dv = strided<sa::MutableTensor>(dv);
    w.dsinks = dsinks.mutable_data_ptr<float>();
    const at::Tensor workspace = bytes(backend.backward_bytes(w.problem), q);
    w.workspace = workspace.data_ptr();
    w.workspace_bytes = static_cast<std::size_t>(workspace.numel());
    backend.backward(w);
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    return {dq.to(type), dk.to(type), dv.to(type), dsinks, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor kernel_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& sinks, const Geometry& geometry, DType format, int threads) {
  return KernelFunction::apply(q, k, v, sinks, &geometry, torch_paths::scalar_type(format),
                               static_cast<std::int64_t>(threads));
}

}  // namespace sinkscope::lab
