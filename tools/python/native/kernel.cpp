// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "kernels/sink_attention.h"
#include "tools/python/native/cuda_stream.hpp"
#include "tools/python/native/tensors.hpp"

namespace sinkscope_python {
namespace {

namespace sa = sink_attention;

sa::DType kernel_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return sa::DType::kBf16;
    case ScalarType::Half:
      return sa::DType::kFp16;
    case ScalarType::Float:
      return sa::DType::kFp32;
    default:
      break;
  }
  throw std::runtime_error(std::string("sinkscope: q k v are ") + torch::headeronly::toString(dtype) +
                           ", wanted BFloat16, Half or Float (on a CPU also Double)");
}

void require_ok(const sa::Status& status) {
  require(status.ok(), status.message);
}

// Can the kernel read it where it is? The copy engine of a GPU needs multiples of 16 bytes.
bool is_readable(const Tensor& t) {
  if (t.size(3) > 1 && t.stride(3) != 1) return false;
  if (!t.is_cuda()) return true;
  if (reinterpret_cast<std::uintptr_t>(t.const_data_ptr()) % 16 != 0) return false;
  for (std::int64_t dim = 0; dim < 3; ++dim) {
    if (t.size(dim) > 1 && t.stride(dim) % 8 != 0) return false;
  }
  return true;
}

// The tensor, or a copy that the kernel can read. clone() aligns what is contiguous but lies at an odd address.
Tensor readable(const Tensor& t) {
  if (is_readable(t)) return t;
  const Tensor copy = torch::stable::contiguous(t);
  return is_readable(copy) ? copy : torch::stable::clone(copy);
}

sa::ConstTensor view(const Tensor& t, bool bshd) {
  const Layout at(bshd);
  return {t.const_data_ptr(), t.stride(0), t.stride(at.head), t.stride(at.row)};
}

sa::MutableTensor mutable_view(const Tensor& t, bool bshd, bool wanted = true) {
  const Layout at(bshd);
  if (!wanted) return {};
  return {t.mutable_data_ptr(), t.stride(0), t.stride(at.head), t.stride(at.row)};
}

// The tensors of a call as the kernel can read them, and the problem that they make.
struct Call {
  Tensor q, k, v;
  std::optional<Tensor> sinks;
  sa::Problem problem;

  Call(const Attention& a, const Sizes& n) : q(readable(a.q)), k(readable(a.k)), v(readable(a.v)) {
    if (a.sinks) sinks = torch::stable::contiguous(*a.sinks);
    problem = {.dtype = kernel_dtype(a.q.scalar_type()),
               .sink_dtype = sinks ? kernel_dtype(sinks->scalar_type()) : sa::DType::kFp32,
               .b = n.b,
               .hq = n.hq,
               .hkv = n.hkv,
               .sq = n.sq,
               .sk = n.sk,
               .d = n.d,
               .scale = static_cast<float>(a.scale),
               .causal = a.causal,
               .window = a.window,
               .documents = n.documents};
    if (n.documents == 0) return;
    problem.cu_seqlens_q = static_cast<const std::int32_t*>(a.cu_seqlens_q->const_data_ptr());
    problem.cu_seqlens_k = static_cast<const std::int32_t*>(a.cu_seqlens_k->const_data_ptr());
  }

  const void* sink_data() const { return sinks ? sinks->const_data_ptr() : nullptr; }
};

struct CpuBackend {
  sa::cpu::Options options{.threads = static_cast<int>(torch::stable::get_num_threads())};

  std::size_t workspace_bytes(const sa::ForwardParams& f) const {
    return sa::cpu::forward_workspace_bytes(f.problem, options);
  }
  std::size_t workspace_bytes(const sa::BackwardParams& w) const {
    return sa::cpu::backward_workspace_bytes(w.problem, options);
  }
  sa::Status run(const sa::ForwardParams& f) const { return sa::cpu::forward(f, options); }
  sa::Status run(const sa::BackwardParams& w) const { return sa::cpu::backward(w, options); }
};

#ifdef SINKSCOPE_WITH_CUDA
struct CudaBackend {
  std::int32_t device;

  std::size_t workspace_bytes(const sa::ForwardParams& f) const {
    require_usable(f.problem);
    return sa::cuda::forward_workspace_bytes(f.problem);
  }
  std::size_t workspace_bytes(const sa::BackwardParams& w) const {
    require_usable(w.problem);
    return sa::cuda::backward_workspace_bytes(w.problem);
  }
  sa::Status run(const sa::ForwardParams& f) const {
    return sa::cuda::forward(f, current_cuda_stream(device));
  }
  sa::Status run(const sa::BackwardParams& w) const {
    return sa::cuda::backward(w, current_cuda_stream(device));
  }

  static void require_usable(const sa::Problem& problem) {
    require_ok(sa::cuda::available());
    require_ok(sa::cuda::supports(problem));
  }
};
#endif

template <class Params, class Backend>
void run_on(Params& params, const Tensor& like, const Backend& backend) {
  const std::size_t bytes = backend.workspace_bytes(params);
  const Tensor workspace = new_tensor(like, {static_cast<std::int64_t>(bytes)}, ScalarType::Byte);
  params.workspace = workspace.mutable_data_ptr();
  params.workspace_bytes = bytes;
  require_ok(backend.run(params));
}

template <class Params>
void run(Params& params, const Tensor& like) {
  if (!like.is_cuda()) return run_on(params, like, CpuBackend{});
#ifdef SINKSCOPE_WITH_CUDA
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  run_on(params, like, CudaBackend{like.get_device_index()});
#else
  require(false,
          "tensors on a GPU, but this build has no CUDA backend: install it where an nvcc of CUDA 12.3 or "
          "later is found, or move the tensors to the CPU");
#endif
}

}  // namespace

ForwardOutputs kernel_forward(const Attention& a, bool with_residual) {
  const Sizes n = checked_sizes(a);
  const Call call(a, n);
  const bool has_residual = with_residual && call.problem.dtype != sa::DType::kFp32;
  ForwardOutputs outputs{new_like(a.q, true), new_tensor(a.q, {n.b, n.hq, n.sq}, ScalarType::Float),
                         has_residual ? new_tensor(a.q, {n.b, n.hq, n.sq, n.d}, ScalarType::Char)
                                      : new_tensor(a.q, {0}, ScalarType::Char)};
  sa::ForwardParams params{.problem = call.problem,
                           .q = view(call.q, a.bshd),
                           .k = view(call.k, a.bshd),
                           .v = view(call.v, a.bshd),
                           .sinks = call.sink_data(),
                           .out = mutable_view(outputs.out, a.bshd),
                           .lse = static_cast<float*>(outputs.lse.mutable_data_ptr())};
  if (has_residual) params.residual = static_cast<std::int8_t*>(outputs.residual.mutable_data_ptr());
  run(params, a.q);
  return outputs;
}

Gradients kernel_backward(const Attention& a, const BackwardInputs& in) {
  const Sizes n = checked_sizes(a);
  check_backward_inputs(a, in, n);
  const Call call(a, n);
  const Tensor out = readable(in.out), dout = readable(in.dout), lse = torch::stable::contiguous(in.lse);
  std::optional<Tensor> dlse, residual;
  if (in.dlse) dlse = torch::stable::contiguous(*in.dlse);
  if (in.residual && in.residual->numel() > 0) residual = torch::stable::contiguous(*in.residual);
  Gradients gradients{new_like(a.q, in.need_dq), new_like(a.k, in.need_dk), new_like(a.v, in.need_dv),
                      new_tensor(a.q, {in.need_dsinks ? n.hq : 0}, ScalarType::Float)};
  sa::BackwardParams params{.problem = call.problem,
                            .q = view(call.q, a.bshd),
                            .k = view(call.k, a.bshd),
                            .v = view(call.v, a.bshd),
                            .sinks = call.sink_data(),
                            .out = view(out, a.bshd),
                            .lse = static_cast<const float*>(lse.const_data_ptr()),
                            .dout = view(dout, a.bshd),
                            .dq = mutable_view(gradients.dq, a.bshd, in.need_dq),
                            .dk = mutable_view(gradients.dk, a.bshd, in.need_dk),
                            .dv = mutable_view(gradients.dv, a.bshd, in.need_dv)};
  if (residual) params.residual = static_cast<const std::int8_t*>(residual->const_data_ptr());
  if (dlse) params.dlse = static_cast<const float*>(dlse->const_data_ptr());
  if (in.need_dsinks) params.dsinks = static_cast<float*>(gradients.dsinks.mutable_data_ptr());
  run(params, a.q);
  return gradients;
}

std::string backends() {
  using sa::cpu::isa_name;
  return std::string("cpu bf16 ") + isa_name(sa::DType::kBf16) + ", fp16 " + isa_name(sa::DType::kFp16) +
         ", fp32 " + isa_name(sa::DType::kFp32) + "; cuda " SINKSCOPE_CUDA_BUILT;
}

}  // namespace sinkscope_python
