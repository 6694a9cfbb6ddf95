// SPDX-License-Identifier: Apache-2.0
// Runs the kernel on plain vectors, for tests: inputs rounded to a format, every output and the workspace
// between guard bands, the truth of the same rounded inputs beside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/sink_attention.h"
#include "reference/attention.hpp"
#include "src/core/tensor.hpp"
#include "tests/reference/naive.hpp"

namespace sinkscope::testing_kernel {

namespace sa = sink_attention;

inline sa::DType kernel_dtype(DType dtype) {
  return dtype == DType::kBf16   ? sa::DType::kBf16
         : dtype == DType::kFp16 ? sa::DType::kFp16
                                 : sa::DType::kFp32;
}

// A buffer with a band of NaN bits before and behind it.
class GuardedTensor {
 public:
  GuardedTensor(DType dtype, std::int64_t count)
      : dtype_(dtype), count_(count), bytes_(total(), std::byte{0xFF}) {}

  void* data() { return bytes_.data() + kBand; }
  bool guards_intact() const {
    const auto untouched = [](std::byte b) { return b == std::byte{0xFF}; };
    return std::all_of(bytes_.begin(), bytes_.begin() + kBand, untouched) &&
           std::all_of(bytes_.end() - kBand, bytes_.end(), untouched);
  }
  bool wholly_untouched() const {
    return std::all_of(bytes_.begin(), bytes_.end(), [](std::byte b) { return b == std::byte{0xFF}; });
  }
  std::vector<std::byte> content() const { return {bytes_.begin() + kBand, bytes_.end() - kBand}; }
  std::vector<double> widened() const {
    Tensor tensor(dtype_, {count_});
    std::memcpy(tensor.data(), bytes_.data() + kBand, tensor.bytes());
    return tensor.widened();
  }

 private:
  static constexpr std::ptrdiff_t kBand = 512;
  std::size_t total() const { return 2 * kBand + static_cast<std::size_t>(count_) * size_of(dtype_); }
  DType dtype_;
  std::int64_t count_;
  std::vector<std::byte> bytes_;
};

struct RunOptions {
  sa::cpu::Options cpu;
  bool bshd = false;
  bool residual = false;
  bool want_dq = true, want_dk = true, want_dv = true, want_dsinks = true;
};

struct KernelRun {
  std::vector<double> out, lse, dq, dk, dv, dsinks;
  std::vector<std::byte> bits;  // of every output, for bitwise comparison
  bool guards_intact = true;
  sa::Status forward, backward;
};

inline std::vector<double> round_all(const std::vector<double>& values, DType dtype) {
  return Tensor::rounded(dtype, {static_cast<std::int64_t>(values.size())}, values).widened();
}

// Rounds the tensors (not the sinks and dlse) to the format, in place.
inline void round_inputs(reference::naive::Data& data, DType dtype) {
  for (auto* values : {&data.q, &data.k, &data.v, &data.dout}) *values = round_all(*values, dtype);
  for (auto* values : {&data.sinks, &data.dlse}) *values = round_all(*values, DType::kFp32);
}

// [b, h, s, d] values as bytes of the format, laid out [b, s, h, d] where asked.
inline std::vector<std::byte> laid_out(const std::vector<double>& values, DType dtype, std::int64_t b,
                                       std::int64_t h, std::int64_t s, std::int64_t d, bool bshd) {
  Tensor tensor(dtype, {static_cast<std::int64_t>(values.size())});
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    const std::int64_t c = i % d, row = i / d % s, head = i / d / s % h, batch = i / d / s / h;
    if (batch >= b) throw std::logic_error("more values than the shape holds");
    tensor.set(bshd ? ((batch * s + row) * h + head) * d + c : i, values[static_cast<std::size_t>(i)]);
  }
  return {tensor.data(), tensor.data() + tensor.bytes()};
}

inline std::vector<double> heads_first(const std::vector<double>& values, std::int64_t h, std::int64_t s,
                                       std::int64_t d, bool bshd) {
  if (!bshd) return values;
  std::vector<double> result(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto flat = static_cast<std::int64_t>(i);
    const std::int64_t c = flat % d, head = flat / d % h, row = flat / d / h % s, batch = flat / d / h / s;
    result[static_cast<std::size_t>(((batch * h + head) * s + row) * d + c)] = values[i];
  }
  return result;
}

inline KernelRun run_kernel(const reference::naive::Data& data, DType dtype, const RunOptions& options = {}) {
  const reference::Problem& p = data.problem;
  const bool bshd = options.bshd;
  sa::Problem problem;
  problem.dtype = kernel_dtype(dtype);
  problem.b = p.b;
  problem.hq = p.hq;
  problem.hkv = p.hkv;
  problem.sq = p.sq;
  problem.sk = p.sk;
  problem.d = p.d;
  problem.scale = static_cast<float>(p.scale);
  problem.causal = p.causal;
  problem.window = p.window;
  const std::vector<std::int32_t> cu_q(p.cu_q.begin(), p.cu_q.end()), cu_k(p.cu_k.begin(), p.cu_k.end());
  if (!cu_q.empty()) {
    problem.documents = static_cast<std::int32_t>(cu_q.size()) - 1;
    problem.cu_seqlens_q = cu_q.data();
    problem.cu_seqlens_k = cu_k.data();
  }
  const auto q = laid_out(data.q, dtype, p.b, p.hq, p.sq, p.d, bshd);
  const auto k = laid_out(data.k, dtype, p.b, p.hkv, p.sk, p.d, bshd);
  const auto v = laid_out(data.v, dtype, p.b, p.hkv, p.sk, p.d, bshd);
  const auto dout = laid_out(data.dout, dtype, p.b, p.hq, p.sq, p.d, bshd);
  const std::vector<float> sinks(data.sinks.begin(), data.sinks.end()),
      dlse(data.dlse.begin(), data.dlse.end());
  const auto input = [&](const void* from, std::int64_t h, std::int64_t s) {
    return bshd ? sa::ConstTensor{from, h * s * p.d, p.d, h * p.d}
                : sa::ConstTensor{from, h * s * p.d, s * p.d, p.d};
  };
  const auto output = [&](void* to, std::int64_t h, std::int64_t s) {
    return bshd ? sa::MutableTensor{to, h * s * p.d, p.d, h * p.d}
                : sa::MutableTensor{to, h * s * p.d, s * p.d, p.d};
  };

  const std::int64_t rows = p.b * p.hq * p.sq, keys = p.b * p.hkv * p.sk;
  GuardedTensor out(dtype, rows * p.d), lse(DType::kFp32, rows), dq(dtype, rows * p.d), dk(dtype, keys * p.d),
      dv(dtype, keys * p.d), dsinks(DType::kFp32, p.hq);
  std::vector<std::int8_t> residual(static_cast<std::size_t>(rows * p.d));

  KernelRun run;
  sa::ForwardParams f;
  f.problem = problem;
  f.q = input(q.data(), p.hq, p.sq);
  f.k = input(k.data(), p.hkv, p.sk);
  f.v = input(v.data(), p.hkv, p.sk);
  f.sinks = sinks.empty() ? nullptr : sinks.data();
  f.out = output(out.data(), p.hq, p.sq);
  f.lse = static_cast<float*>(lse.data());
  f.residual = options.residual ? residual.data() : nullptr;
  f.workspace_bytes = sa::cpu::forward_workspace_bytes(problem, options.cpu);
  GuardedTensor forward_workspace(DType::kFp32, static_cast<std::int64_t>(f.workspace_bytes / 4));
  f.workspace = forward_workspace.data();
  run.forward = sa::cpu::forward(f, options.cpu);

  sa::BackwardParams w;
  w.problem = problem;
  w.q = f.q;
  w.k = f.k;
  w.v = f.v;
  w.sinks = f.sinks;
  w.out = input(out.data(), p.hq, p.sq);
  w.lse = f.lse;
  w.residual = f.residual;
  w.dout = input(dout.data(), p.hq, p.sq);
  w.dlse = dlse.empty() ? nullptr : dlse.data();
  if (options.want_dq) w.dq = output(dq.data(), p.hq, p.sq);
  if (options.want_dk) w.dk = output(dk.data(), p.hkv, p.sk);
  if (options.want_dv) w.dv = output(dv.data(), p.hkv, p.sk);
  w.dsinks = options.want_dsinks ? static_cast<float*>(dsinks.data()) : nullptr;
  w.workspace_bytes = sa::cpu::backward_workspace_bytes(problem, options.cpu);
  GuardedTensor backward_workspace(DType::kFp32, static_cast<std::int64_t>(w.workspace_bytes / 4));
  w.workspace = backward_workspace.data();
  run.backward = sa::cpu::backward(w, options.cpu);

  for (const GuardedTensor* tensor :
       {&out, &lse, &dq, &dk, &dv, &dsinks, &forward_workspace, &backward_workspace}) {
    run.guards_intact = run.guards_intact && tensor->guards_intact();
  }
  if (!options.want_dq) run.guards_intact = run.guards_intact && dq.wholly_untouched();
  if (!options.want_dk) run.guards_intact = run.guards_intact && dk.wholly_untouched();
  if (!options.want_dv) run.guards_intact = run.guards_intact && dv.wholly_untouched();
  for (const GuardedTensor* tensor : {&out, &lse, &dq, &dk, &dv, &dsinks}) {
    const std::vector<std::byte> content = tensor->content();
    run.bits.insert(run.bits.end(), content.begin(), content.end());
  }
  run.out = heads_first(out.widened(), p.hq, p.sq, p.d, bshd);
  run.lse = lse.widened();
  run.dq = heads_first(dq.widened(), p.hq, p.sq, p.d, bshd);
  run.dk = heads_first(dk.widened(), p.hkv, p.sk, p.d, bshd);
  run.dv = heads_first(dv.widened(), p.hkv, p.sk, p.d, bshd);
  run.dsinks = dsinks.widened();
  return run;
}

}  // namespace sinkscope::testing_kernel
