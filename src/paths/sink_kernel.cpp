// SPDX-License-Identifier: Apache-2.0
#include "src/paths/sink_kernel.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <stdexcept>

#include "fmt/format.h"

#include "kernels/sink_attention.h"
#include "src/core/error.hpp"

namespace sinkscope {
namespace {

namespace sa = sink_attention;

// Memory of the kernel's with a band of NaN bits on both sides: a write outside is found.
class GuardedBuffer {
 public:
  GuardedBuffer(std::string name, std::size_t bytes)
      : name_(std::move(name)), bytes_(bytes + 2 * kBand, kPattern) {}

  void* data() { return bytes_.data() + kBand; }
  std::size_t size() const { return bytes_.size() - 2 * kBand; }

  void check() const {
    const auto untouched = [](std::byte b) { return b == kPattern; };
    if (!std::all_of(bytes_.begin(), bytes_.begin() + kBand, untouched) ||
        !std::all_of(bytes_.end() - kBand, bytes_.end(), untouched)) {
      throw std::runtime_error(fmt::format("the kernel wrote outside {}", name_));
    }
  }

 private:
  static constexpr std::ptrdiff_t kBand = 1024;
  static constexpr std::byte kPattern{0xFF};
  std::string name_;
  std::vector<std::byte> bytes_;
};

sa::DType kernel_dtype(DType dtype) {
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
std::vector<std::byte> transposed(const std::byte* from, std::int64_t b, std::int64_t h, std::int64_t s,
                                  std::size_t run) {
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

struct IsaName {
  const char* name;
  sa::cpu::Isa isa;
};

// SINKSCOPE_ISA=avx2 (avx512, amx) forces an instruction set, to judge each one of them on one machine.
IsaName chosen_isa() {
  constexpr std::array kNames = {IsaName{"avx2", sa::cpu::Isa::kAvx2},
                                 IsaName{"avx512", sa::cpu::Isa::kAvx512},
                                 IsaName{"amx", sa::cpu::Isa::kAmx}};
  const char* wanted = std::getenv("SINKSCOPE_ISA");
  if (wanted == nullptr || *wanted == '\0') return {nullptr, sa::cpu::Isa::kAuto};
  for (const IsaName& known : kNames) {
    if (std::string_view(wanted) == known.name) return known;
  }
  throw InputError(fmt::format("SINKSCOPE_ISA is '{}', wanted avx2, avx512 or amx", wanted));
}

// One run: the buffers of a case in the kernel's terms.
class KernelRun {
 public:
  KernelRun(const Case& c, const PathOptions& options) : case_(c), shape_(c.problem.shape) {
    cpu_ = {options.threads, chosen_isa().isa};
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
      problem_.cu_seqlens_q = cu_q_.data();
      problem_.cu_seqlens_k = cu_k_.data();
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
    f.sinks = case_.sinks.given() ? case_.sinks.data() : nullptr;
    GuardedBuffer out("out", case_.q.bytes());
    GuardedBuffer lse("lse", static_cast<std::size_t>(shape_.b * shape_.hq * shape_.sq) * sizeof(float));
    GuardedBuffer residual("the residual",
                           case_.problem.residual ? static_cast<std::size_t>(case_.q.size()) : 0);
    GuardedBuffer forward_workspace("the forward's workspace",
                                    sa::cpu::forward_workspace_bytes(problem_, cpu_));
    f.out = strided<sa::MutableTensor>(out.data(), case_.problem.layout, shape_.hq, shape_.sq, shape_.d);
    f.lse = static_cast<float*>(lse.data());
    if (case_.problem.residual) f.residual = static_cast<std::int8_t*>(residual.data());
    f.workspace = forward_workspace.data();
    f.workspace_bytes = forward_workspace.size();
    expect(sa::cpu::forward(f, cpu_));
    for (const GuardedBuffer* buffer : {&out, &lse, &residual, &forward_workspace}) buffer->check();

    Outputs outputs;
    outputs.out = output(out, shape_.dtype, {shape_.b, shape_.hq, shape_.sq, shape_.d});
    outputs.lse = output(lse, DType::kFp32, {shape_.b, shape_.hq, shape_.sq});
    if (backward) run_backward(f, outputs, out);
    return outputs;
  }

 private:
  void run_backward(const sa::ForwardParams& f, Outputs& outputs, GuardedBuffer& out) {
    const Grads& grads = case_.problem.grads;
    GuardedBuffer dq("dq", case_.q.bytes()), dk("dk", case_.k.bytes()), dv("dv", case_.v.bytes());
    GuardedBuffer dsinks("dsinks", static_cast<std::size_t>(shape_.hq) * sizeof(float));
    GuardedBuffer workspace("the backward's workspace", sa::cpu::backward_workspace_bytes(problem_, cpu_));
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
    if (case_.dlse.given()) w.dlse = case_.dlse.as<float>().data();
    if (grads.q) w.dq = strided<sa::MutableTensor>(dq.data(), layout, shape_.hq, shape_.sq, shape_.d);
    if (grads.k) w.dk = strided<sa::MutableTensor>(dk.data(), layout, shape_.hkv, shape_.sk, shape_.d);
    if (grads.v) w.dv = strided<sa::MutableTensor>(dv.data(), layout, shape_.hkv, shape_.sk, shape_.d);
    const bool want_dsinks = grads.s && case_.sinks.given();
    if (want_dsinks) w.dsinks = static_cast<float*>(dsinks.data());
    w.workspace = workspace.data();
    w.workspace_bytes = workspace.size();
    expect(sa::cpu::backward(w, cpu_));
    for (const GuardedBuffer* buffer : {&dq, &dk, &dv, &dsinks, &workspace}) buffer->check();

    if (grads.q) outputs.dq = output(dq, shape_.dtype, case_.q.shape());
    if (grads.k) outputs.dk = output(dk, shape_.dtype, case_.k.shape());
    if (grads.v) outputs.dv = output(dv, shape_.dtype, case_.v.shape());
    if (want_dsinks) outputs.dsinks = output(dsinks, DType::kFp32, {shape_.hq});
  }

  static void expect(const sa::Status& status) {
    if (!status.ok()) throw std::runtime_error(fmt::format("the kernel refused: {}", status.message));
  }

  sa::ConstTensor input(const Tensor& tensor) {
    const std::vector<std::int64_t>& shape = tensor.shape();
    const std::byte* data = tensor.data();
    if (case_.problem.layout == Layout::kBshd) {
      laid_out_.push_back(transposed(data, shape[0], shape[1], shape[2],
                                     static_cast<std::size_t>(shape[3]) * size_of(tensor.dtype())));
      data = laid_out_.back().data();
    }
    return strided<sa::ConstTensor>(data, case_.problem.layout, shape[1], shape[2], shape[3]);
  }

  Tensor output(GuardedBuffer& buffer, DType dtype, const std::vector<std::int64_t>& shape) const {
    Tensor tensor(dtype, shape);
    const auto* from = static_cast<const std::byte*>(buffer.data());
    if (case_.problem.layout == Layout::kBshd && shape.size() == 4) {
      const std::vector<std::byte> bytes =
          transposed(from, shape[0], shape[2], shape[1], static_cast<std::size_t>(shape[3]) * size_of(dtype));
      std::copy(bytes.begin(), bytes.end(), tensor.data());
    } else {
      std::copy_n(from, tensor.bytes(), tensor.data());
    }
    return tensor;
  }

  const Case& case_;
  const AttentionShape& shape_;
  sa::Problem problem_;
  sa::cpu::Options cpu_;
  std::vector<std::int32_t> cu_q_, cu_k_;
  std::vector<std::vector<std::byte>> laid_out_;
};

}  // namespace

std::string sink_kernel_backends() {
  using sa::cpu::isa_name;
  return fmt::format("bf16 {}, fp16 {}, fp32 {}", isa_name(sa::DType::kBf16), isa_name(sa::DType::kFp16),
                     isa_name(sa::DType::kFp32));
}

Path sink_kernel_path() {
  Path path;
  path.name = "sink_kernel";
  path.summary = "the production kernel of this project";
  path.backends = "cpu (AVX2, AVX-512 or AMX)";
  path.unsupported = [](const Case&) { return std::optional<std::string>(); };
  path.run = [](const Case& c, const PathOptions& options) {
    const char* forced = chosen_isa().name;
    const char* isa = forced != nullptr ? forced : sa::cpu::isa_name(kernel_dtype(c.problem.shape.dtype));
    return PathRun{KernelRun(c, options).run(), fmt::format("cpu {}", isa)};
  };
  return path;
}

}  // namespace sinkscope
