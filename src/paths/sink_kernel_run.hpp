// SPDX-License-Identifier: Apache-2.0
// Runs the production kernel on a case, whatever its backend.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
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

// A case laid out for the kernel: its inputs, outputs and workspaces in one place, to be run once or many times. A
// backend has
//   Buffer(name, bytes)       memory of the kernel's between bands that check() wants untouched, with data(),
//                             size() and copy_to(host memory)
//   input(host data, bytes)   where the kernel is to read it, valid while the backend lives (and, for a backend
//                             that reads host memory, while the case does)
//   forward_workspace_bytes(), backward_workspace_bytes(), forward() and backward(), the kernel's own
template <typename Backend>
class KernelRun {
  using Buffer = typename Backend::Buffer;

 public:
  KernelRun(const Case& c, Backend& backend)
      : line_(c.problem), shape_(line_.shape), backend_(backend), problem_(kernel_problem(c)) {
    lay_out_forward(c);
    if (c.dout.given() && line_.grads.any()) lay_out_backward(c);
  }
  KernelRun(const KernelRun&) = delete;  // the parameters point into the buffers
  KernelRun& operator=(const KernelRun&) = delete;

  bool has_backward() const { return has_backward_; }
  void forward() { expect(backend_.forward(forward_)); }
  void backward() { expect(backend_.backward(backward_)); }

  // Throws where the kernel wrote outside a buffer.
  void check() const {
    for (const Buffer& buffer : buffers_) buffer.check();
  }

  // What the last runs left, on the host.
  Outputs outputs() const {
    const std::vector<std::int64_t> rows = {shape_.b, shape_.hq, shape_.sq, shape_.d};
    const std::vector<std::int64_t> keys = {shape_.b, shape_.hkv, shape_.sk, shape_.d};
    Outputs outputs;
    outputs.out = output(out_, shape_.dtype, rows);
    outputs.lse = output(lse_, DType::kFp32, {shape_.b, shape_.hq, shape_.sq});
    if (dq_ != nullptr) outputs.dq = output(dq_, shape_.dtype, rows);
    if (dk_ != nullptr) outputs.dk = output(dk_, shape_.dtype, keys);
    if (dv_ != nullptr) outputs.dv = output(dv_, shape_.dtype, keys);
    if (dsinks_ != nullptr) outputs.dsinks = output(dsinks_, DType::kFp32, {shape_.hq});
    return outputs;
  }

 private:
  sa::Problem kernel_problem(const Case& c) {
    sa::Problem problem;
    problem.dtype = kernel_dtype(shape_.dtype);
    problem.b = shape_.b;
    problem.hq = shape_.hq;
    problem.hkv = shape_.hkv;
    problem.sq = shape_.sq;
    problem.sk = shape_.sk;
    problem.d = shape_.d;
    problem.scale = static_cast<float>(shape_.scale);
    problem.causal = shape_.causal;
    problem.window = shape_.window;
    if (c.sinks.given()) problem.sink_dtype = kernel_dtype(c.sinks.dtype());
    const std::vector<std::int64_t> cu_q = shape_.cu_q(), cu_k = shape_.cu_k();
    cu_q_.assign(cu_q.begin(), cu_q.end());
    cu_k_.assign(cu_k.begin(), cu_k.end());
    if (!cu_q_.empty()) {
      problem.documents = static_cast<std::int32_t>(cu_q_.size()) - 1;
      problem.cu_seqlens_q = offsets(cu_q_);
      problem.cu_seqlens_k = offsets(cu_k_);
    }
    return problem;
  }

  void lay_out_forward(const Case& c) {
    sa::ForwardParams& f = forward_;
    f.problem = problem_;
    f.q = input(c.q);
    f.k = input(c.k);
    f.v = input(c.v);
    f.sinks = c.sinks.given() ? backend_.input(c.sinks.data(), c.sinks.bytes()) : nullptr;
    out_ = buffer("out", c.q.bytes());
    lse_ = buffer("lse", static_cast<std::size_t>(shape_.b * shape_.hq * shape_.sq) * sizeof(float));
    f.out = strided<sa::MutableTensor>(out_->data(), line_.layout, shape_.hq, shape_.sq, shape_.d);
    f.lse = static_cast<float*>(lse_->data());
    if (line_.residual) {
      Buffer* residual = buffer("the residual", static_cast<std::size_t>(c.q.size()));
      f.residual = static_cast<std::int8_t*>(residual->data());
    }
    Buffer* workspace = buffer("the forward's workspace", backend_.forward_workspace_bytes(problem_));
    f.workspace = workspace->data();
    f.workspace_bytes = workspace->size();
  }

  void lay_out_backward(const Case& c) {
    const Grads& grads = line_.grads;
    sa::BackwardParams& w = backward_;
    w.problem = problem_;
    w.q = forward_.q;
    w.k = forward_.k;
    w.v = forward_.v;
    w.sinks = forward_.sinks;
    w.out = strided<sa::ConstTensor>(out_->data(), line_.layout, shape_.hq, shape_.sq, shape_.d);
    w.lse = forward_.lse;
    w.residual = forward_.residual;
    w.dout = input(c.dout);
    if (c.dlse.given()) w.dlse = static_cast<const float*>(backend_.input(c.dlse.data(), c.dlse.bytes()));
    if (grads.q) w.dq = gradient(dq_, "dq", c.q);
    if (grads.k) w.dk = gradient(dk_, "dk", c.k);
    if (grads.v) w.dv = gradient(dv_, "dv", c.v);
    if (grads.s && c.sinks.given()) {
      dsinks_ = buffer("dsinks", static_cast<std::size_t>(shape_.hq) * sizeof(float));
      w.dsinks = static_cast<float*>(dsinks_->data());
    }
    Buffer* workspace = buffer("the backward's workspace", backend_.backward_workspace_bytes(problem_));
    w.workspace = workspace->data();
    w.workspace_bytes = workspace->size();
    has_backward_ = true;
  }

  static void expect(const sa::Status& status) {
    if (status.code == sa::Status::Code::kUnsupported) throw EnvironmentError(status.message);
    if (!status.ok()) throw std::runtime_error(fmt::format("the kernel refused: {}", status.message));
  }

  const std::int32_t* offsets(const std::vector<std::int32_t>& cu) {
    return static_cast<const std::int32_t*>(
        backend_.input(reinterpret_cast<const std::byte*>(cu.data()), cu.size() * sizeof(std::int32_t)));
  }

  Buffer* buffer(const char* name, std::size_t bytes) { return &buffers_.emplace_back(name, bytes); }

  sa::MutableTensor gradient(Buffer*& into, const char* name, const Tensor& of) {
    into = buffer(name, of.bytes());
    return strided<sa::MutableTensor>(into->data(), line_.layout, of.shape()[1], of.shape()[2],
                                      of.shape()[3]);
  }

  sa::ConstTensor input(const Tensor& tensor) {
    const std::vector<std::int64_t>& shape = tensor.shape();
    const std::byte* data = tensor.data();
    if (line_.layout == Layout::kBshd) {
      laid_out_.push_back(transposed(data, shape[0], shape[1], shape[2],
                                     static_cast<std::size_t>(shape[3]) * size_of(tensor.dtype())));
      data = laid_out_.back().data();
    }
    return strided<sa::ConstTensor>(backend_.input(data, tensor.bytes()), line_.layout, shape[1], shape[2],
                                    shape[3]);
  }

  Tensor output(const Buffer* buffer, DType dtype, const std::vector<std::int64_t>& shape) const {
    Tensor tensor(dtype, shape);
    buffer->copy_to(tensor.data());
    if (line_.layout == Layout::kBshd && shape.size() == 4) {
      const std::vector<std::byte> bytes = transposed(tensor.data(), shape[0], shape[2], shape[1],
                                                      static_cast<std::size_t>(shape[3]) * size_of(dtype));
      std::copy(bytes.begin(), bytes.end(), tensor.data());
    }
    return tensor;
  }

  const Problem line_;
  const AttentionShape& shape_;
  Backend& backend_;
  std::vector<std::int32_t> cu_q_, cu_k_;
  std::vector<std::vector<std::byte>> laid_out_;
  std::deque<Buffer> buffers_;  // a deque: they stay where they are
  Buffer *out_ = nullptr, *lse_ = nullptr, *dq_ = nullptr, *dk_ = nullptr, *dv_ = nullptr, *dsinks_ = nullptr;
  const sa::Problem problem_;
  sa::ForwardParams forward_;
  sa::BackwardParams backward_;
  bool has_backward_ = false;
};

// One run of a case on a backend, every buffer's bands checked.
template <typename Backend>
Outputs run_kernel(const Case& c, Backend& backend) {
  KernelRun<Backend> run(c, backend);
  run.forward();
  if (run.has_backward()) run.backward();
  backend.finish();
  run.check();
  return run.outputs();
}

}  // namespace sinkscope
