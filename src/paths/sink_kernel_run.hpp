// SPDX-License-Identifier: Apache-2.0
// Runs the production kernel on a case, whatever its backend.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"

#include "kernels/sink_attention.h"
#include "src/core/error.hpp"
#include "src/inputs/path.hpp"

namespace sinkscope {

namespace sa = sink_attention;

inline sa::DType kernel_dtype(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return sa::DType::kBf16;
    case DType::kFp16:
      return sa::DType::kFp16;
    default:
      return sa::DType::kFp32;
  }
}

// [b, h, s, d] strides of a contiguous tensor in the case's layout.
template <typename Strided>
Strided strided(decltype(Strided::data) data, Layout layout, std::int64_t h, std::int64_t s, std::int64_t d) {
  if (layout == Layout::kBshd) return {data, h * s * d, d, h * d};
  return {data, h * s * d, s * d, d};
}

// A tensor [b, h, s, d] as the kernel is to see it: as it is, or laid out [b, s, h, d]. The same the other
// way round with h and s swapped.
inline std::vector<std::byte> transposed(const std::byte* from, std::int64_t b, std::int64_t h,
                                         std::int64_t s, std::size_t run) {
  std::vector<std::byte> to(static_cast<std::size_t>(b * h * s) * run);
  for (std::int64_t batch = 0; batch < b; ++batch) {
    for (std::int64_t head = 0; head < h; ++head) {
      for (std::int64_t row = 0; row < s; ++row) {
        std::copy_n(from + static_cast<std::size_t>((batch * h + head) * s + row) * run, run,
                    to.data() + static_cast<std::size_t>((batch * s + row) * h + head) * run);
      }
    }
  }
  return to;
}

// One run: the buffers of a case in the kernel's terms. A backend has
//   Buffer(name, bytes)       memory of the kernel's between bands that check() wants untouched, with data(),
//                             size() and copy_to(host memory)
//   input(host data, bytes)   where the kernel is to read it, valid while the backend lives
//   forward_workspace_bytes(), backward_workspace_bytes(), forward() and backward(), the kernel's own
template <typename Backend>
class KernelRun {
  using Buffer = typename Backend::Buffer;

 public:
  KernelRun(const Case& c, Backend& backend) : case_(c), shape_(c.problem.shape), backend_(backend) {
    problem_.dtype = kernel_dtype(shape_.dtype);
    problem_.b = shape_.b;
    problem_.hq = shape_.hq;
    problem_.hkv = shape_.hkv;
    problem_.sq = shape_.sq;
    problem_.sk = shape_.sk;
    problem_.d = shape_.d;
    problem_.scale = static_cast<float>(shape_.scale);
    problem_.causal = shape_.causal;
    problem_.window = shape_.window;
    if (c.sinks.given()) problem_.sink_dtype = kernel_dtype(c.sinks.dtype());
    const std::vector<std::int64_t> cu_q = shape_.cu_q(), cu_k = shape_.cu_k();
    cu_q_.assign(cu_q.begin(), cu_q.end());
    cu_k_.assign(cu_k.begin(), cu_k.end());
    if (!cu_q_.empty()) {
      problem_.documents = static_cast<std::int32_t>(cu_q_.size()) - 1;
      problem_.cu_seqlens_q = offsets(cu_q_);
      problem_.cu_seqlens_k = offsets(cu_k_);
    }
  }

  Outputs run() {
    const Grads& grads = case_.problem.grads;
    const bool backward = case_.dout.given() && grads.any();
    sa::ForwardParams f;
    f.problem = problem_;
    f.q = input(case_.q);
    f.k = input(case_.k);
    f.v = input(case_.v);
    f.sinks = case_.sinks.given() ? backend_.input(case_.sinks.data(), case_.sinks.bytes()) : nullptr;
    Buffer out("out", case_.q.bytes());
    Buffer lse("lse", static_cast<std::size_t>(shape_.b * shape_.hq * shape_.sq) * sizeof(float));
    Buffer residual("the residual", case_.problem.residual ? static_cast<std::size_t>(case_.q.size()) : 0);
    Buffer forward_workspace("the forward's workspace", backend_.forward_workspace_bytes(problem_));
    f.out = strided<sa::MutableTensor>(out.data(), case_.problem.layout, shape_.hq, shape_.sq, shape_.d);
    f.lse = static_cast<float*>(lse.data());
    if (case_.problem.residual) f.residual = static_cast<std::int8_t*>(residual.data());
    f.workspace = forward_workspace.data();
    f.workspace_bytes = forward_workspace.size();
    expect(backend_.forward(f));
    for (const Buffer* buffer : {&out, &lse, &residual, &forward_workspace}) buffer->check();

    Outputs outputs;
    outputs.out = output(out, shape_.dtype, {shape_.b, shape_.hq, shape_.sq, shape_.d});
    outputs.lse = output(lse, DType::kFp32, {shape_.b, shape_.hq, shape_.sq});
    if (backward) run_backward(f, outputs, out);
    return outputs;
  }

 private:
  void run_backward(const sa::ForwardParams& f, Outputs& outputs, Buffer& out) {
    const Grads& grads = case_.problem.grads;
    Buffer dq("dq", case_.q.bytes()), dk("dk", case_.k.bytes()), dv("dv", case_.v.bytes());
    Buffer dsinks("dsinks", static_cast<std::size_t>(shape_.hq) * sizeof(float));
    Buffer workspace("the backward's workspace", backend_.backward_workspace_bytes(problem_));
    const Layout layout = case_.problem.layout;
    sa::BackwardParams w;
    w.problem = problem_;
    w.q = f.q;
    w.k = f.k;
    w.v = f.v;
    w.sinks = f.sinks;
    w.out = strided<sa::ConstTensor>(out.data(), layout, shape_.hq, shape_.sq, shape_.d);
    w.lse = f.lse;
    w.residual = f.residual;
    w.dout = input(case_.dout);
    if (case_.dlse.given())
      w.dlse = static_cast<const float*>(backend_.input(case_.dlse.data(), case_.dlse.bytes()));
    if (grads.q) w.dq = strided<sa::MutableTensor>(dq.data(), layout, shape_.hq, shape_.sq, shape_.d);
    if (grads.k) w.dk = strided<sa::MutableTensor>(dk.data(), layout, shape_.hkv, shape_.sk, shape_.d);
    if (grads.v) w.dv = strided<sa::MutableTensor>(dv.data(), layout, shape_.hkv, shape_.sk, shape_.d);
    const bool want_dsinks = grads.s && case_.sinks.given();
    if (want_dsinks) w.dsinks = static_cast<float*>(dsinks.data());
    w.workspace = workspace.data();
    w.workspace_bytes = workspace.size();
    expect(backend_.backward(w));
    for (const Buffer* buffer : {&dq, &dk, &dv, &dsinks, &workspace}) buffer->check();

    if (grads.q) outputs.dq = output(dq, shape_.dtype, case_.q.shape());
    if (grads.k) outputs.dk = output(dk, shape_.dtype, case_.k.shape());
    if (grads.v) outputs.dv = output(dv, shape_.dtype, case_.v.shape());
    if (want_dsinks) outputs.dsinks = output(dsinks, DType::kFp32, {shape_.hq});
  }

  static void expect(const sa::Status& status) {
    if (status.code == sa::Status::Code::kUnsupported) throw EnvironmentError(status.message);
    if (!status.ok()) throw std::runtime_error(fmt::format("the kernel refused: {}", status.message));
  }

  const std::int32_t* offsets(const std::vector<std::int32_t>& cu) {
    return static_cast<const std::int32_t*>(
        backend_.input(reinterpret_cast<const std::byte*>(cu.data()), cu.size() * sizeof(std::int32_t)));
  }

  sa::ConstTensor input(const Tensor& tensor) {
    const std::vector<std::int64_t>& shape = tensor.shape();
    const std::byte* data = tensor.data();
    if (case_.problem.layout == Layout::kBshd) {
      laid_out_.push_back(transposed(data, shape[0], shape[1], shape[2],
                                     static_cast<std::size_t>(shape[3]) * size_of(tensor.dtype())));
      data = laid_out_.back().data();
    }
    return strided<sa::ConstTensor>(backend_.input(data, tensor.bytes()), case_.problem.layout, shape[1],
                                    shape[2], shape[3]);
  }

  Tensor output(Buffer& buffer, DType dtype, const std::vector<std::int64_t>& shape) const {
    Tensor tensor(dtype, shape);
    buffer.copy_to(tensor.data());
    if (case_.problem.layout == Layout::kBshd && shape.size() == 4) {
      const std::vector<std::byte> bytes = transposed(tensor.data(), shape[0], shape[2], shape[1],
                                                      static_cast<std::size_t>(shape[3]) * size_of(dtype));
      std::copy(bytes.begin(), bytes.end(), tensor.data());
    }
    return tensor;
  }

  const Case& case_;
  const AttentionShape& shape_;
  Backend& backend_;
  sa::Problem problem_;
  std::vector<std::int32_t> cu_q_, cu_k_;
  std::vector<std::vector<std::byte>> laid_out_;
};

}  // namespace sinkscope
