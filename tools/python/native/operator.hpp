// SPDX-License-Identifier: Apache-2.0
// The two operators of the Python package, for tensors that torch hands over. torch's stable ABI only: one binary
// serves every torch from 2.11 on.
//
// Tensors are [b, h, s, d], or [b, s, h, d] where `bshd`; what is written is contiguous in that layout. d must be
// contiguous in inputs, and on a GPU addresses and strides multiples of 16 bytes; others are copied first. Every
// refusal is a std::runtime_error with the value seen and the value wanted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <torch/csrc/stable/tensor.h>
#include <tuple>

namespace sinkscope_python {

using torch::stable::Tensor;

// The function that is computed, and on what.
struct Attention {
  Tensor q, k, v;
  std::optional<Tensor> sinks;                       // [hq]
  std::optional<Tensor> cu_seqlens_q, cu_seqlens_k;  // int32 [documents + 1], on q's device; b 1
  bool causal = true;
  double scale = 1;
  std::int64_t window = 0;
  bool bshd = false;
};

struct ForwardOutputs {
  Tensor out;       // as q
  Tensor lse;       // [b, hq, sq], natural log, the sink included; fp32, of double inputs double
  Tensor residual;  // int8 [b, hq, sq, d], or of no element where it is not wanted or the format has none
};

struct BackwardInputs {
  Tensor dout;                     // as q
  std::optional<Tensor> dlse;      // as lse
  Tensor out, lse;                 // the forward's
  std::optional<Tensor> residual;  // the forward's
  bool need_dq = true, need_dk = true, need_dv = true, need_dsinks = true;
};

// What is not wanted has no element. dsinks is fp32, of double inputs double.
struct Gradients {
  Tensor dq, dk, dv, dsinks;
};

// The production kernel: bf16, fp16 and fp32 on a CPU, bf16 and fp16 on a GPU of compute capability 9.0.
ForwardOutputs kernel_forward(const Attention& attention, bool with_residual);
Gradients kernel_backward(const Attention& attention, const BackwardInputs& inputs);

// The truth, in double precision on the CPU.
ForwardOutputs truth_forward(const Attention& attention);
Gradients truth_backward(const Attention& attention, const BackwardInputs& inputs);

// What the kernel can run on, e.g. "cpu bf16 amx, fp16 avx512, fp32 avx512; cuda 13.0".
std::string backends();

}  // namespace sinkscope_python
