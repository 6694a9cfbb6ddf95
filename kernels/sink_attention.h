// SPDX-License-Identifier: Apache-2.0
// The production sink-attention kernel: one plain interface for every backend (CPU, CUDA sm_90a).
//
//   S_ij = scale q_i.k_j      LSE_i = log(sum_j exp S_ij + exp s_h)
//   P = exp(S - LSE)          p_i = exp(s_h - LSE_i)
//   O = P V                   Delta_i = dO_i.O_i            dS = P (dO V^T - Delta + dLSE)
//   dQ = scale dS K           dK = scale dS^T Q             dV = P^T dO
//   dsink_h = sum_i p_i (dLSE_i - Delta_i)
//
// This header knows only the C++ library. No buffer is allocated here and nothing is thrown: the caller owns
// every buffer, its size comes from the functions below, and every refusal is a Status with a message, given
// before anything is written.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sink_attention {

enum class DType : std::int32_t { kBf16, kFp16, kFp32 };

// What a call came to. `message` is empty when ok; otherwise it says the value seen and the value wanted.
struct Status {
  static constexpr std::size_t kMessageBytes = 256;
  enum class Code : std::int32_t { kOk, kInvalidArgument, kUnsupported, kDeviceError };
  Code code = Code::kOk;
  char message[kMessageBytes] = {};
  bool ok() const { return code == Code::kOk; }
};

// A tensor [batch, head, row, d] in any order of the first three dimensions; d is contiguous. Strides are in
// elements; the stride of a dimension of size 1 is ignored, stride 0 is accepted for inputs (broadcast).
struct ConstTensor {
  const void* data = nullptr;
  std::int64_t stride_b = 0;
  std::int64_t stride_h = 0;
  std::int64_t stride_s = 0;
};
struct MutableTensor {
  void* data = nullptr;
  std::int64_t stride_b = 0;
  std::int64_t stride_h = 0;
  std::int64_t stride_s = 0;
};

// The function that is computed: sizes, types and masks. Shared by forward and backward.
struct Problem {
  DType dtype = DType::kBf16;       // of q k v out dout dq dk dv
  DType sink_dtype = DType::kFp32;  // of sinks
  std::int64_t b = 1;               // batch; 1 with packed documents
  std::int64_t hq = 1;              // query heads, a multiple of hkv
  std::int64_t hkv = 1;             // key/value heads
  std::int64_t sq = 0;              // query rows of a batch entry; the total over documents when packed
  std::int64_t sk = 0;              // keys of a batch entry; the total over documents when packed
  std::int64_t d = 64;              // head dim: 64 or 128 on a GPU, 1 to 256 on a CPU
  float scale = 0.125F;             // multiplies q.k; the sink is not scaled
  bool causal = true;               // key j is visible to row i when j <= i + sk - sq (per document)
  std::int64_t window = 0;  // 0: none; else (causal only) at most `window` keys, the row's own included

  // Packed documents: both null, or both [documents + 1], rising from 0 to sq and to sk. Device memory for a
  // CUDA backend, host memory for the CPU one. A document may be empty on either side.
  std::int32_t documents = 0;
  const std::int32_t* cu_seqlens_q = nullptr;
  const std::int32_t* cu_seqlens_k = nullptr;
};

struct ForwardParams {
  Problem problem;
  ConstTensor q;                // [b, hq, sq, d]
  ConstTensor k;                // [b, hkv, sk, d]
  ConstTensor v;                // [b, hkv, sk, d]
  const void* sinks = nullptr;  // [hq] in sink_dtype, natural log; null: plain attention

  MutableTensor out;     // [b, hq, sq, d]
  float* lse = nullptr;  // [b, hq, sq] natural log, the sink included; contiguous; may be null

  // Optional: out's rounding residual, one int8 per element, [b, hq, sq, d] contiguous, for an accurate Delta
  // in the backward: (bits(out_fp32) - (bits(out) << 16) + 128) >> 8 clamped to int8 for bf16; the same in
  // units of 2^-8 of out's last place for fp16; not used for fp32 (must be null).
  std::int8_t* residual = nullptr;

  void* workspace = nullptr;  // forward_workspace_bytes(); may be null when that is 0
  std::size_t workspace_bytes = 0;
};

struct BackwardParams {
  Problem problem;
  ConstTensor q;  // as in the forward
  ConstTensor k;
  ConstTensor v;
  const void* sinks = nullptr;
  ConstTensor out;                        // the forward's out
  const float* lse = nullptr;             // the forward's lse
  const std::int8_t* residual = nullptr;  // the forward's residual, or null: Delta from the rounded out
  ConstTensor dout;                       // [b, hq, sq, d]
  const float* dlse = nullptr;            // [b, hq, sq] contiguous, or null: zero

  MutableTensor dq;         // [b, hq, sq, d]    each output may be null: it is not wanted
  MutableTensor dk;         // [b, hkv, sk, d]   keys that no row sees get zeros
  MutableTensor dv;         // [b, hkv, sk, d]
  float* dsinks = nullptr;  // [hq]

  void* workspace = nullptr;  // backward_workspace_bytes()
  std::size_t workspace_bytes = 0;
};

namespace cpu {

// Instruction sets, best last. `kAuto` takes the best one that this machine has.
enum class Isa : std::int32_t { kAuto, kAvx2, kAvx512, kAmx };

struct Options {
  int threads = 0;       // 0: all hardware threads; the result does not depend on it
  Isa isa = Isa::kAuto;  // a forced one that the machine lacks gives kUnsupported
};

// Scratch that forward()/backward() need for these options, in bytes: per thread one head's packed keys and
// values and a few tiles; in the backward also fp32 sums of dk and dv of the heads in work (kernels/README.md).
std::size_t forward_workspace_bytes(const Problem& problem, const Options& options);
std::size_t backward_workspace_bytes(const Problem& problem, const Options& options);

// Sink attention on the CPU. The same tiling, rounding points and interface as the GPU backend: fp32 softmax
// and accumulation, P and dS rounded to the input type before the second matmul, outputs rounded once.
// Bitwise repeatable for a given instruction set, whatever the number of threads.
Status forward(const ForwardParams& params, const Options& options = {});
Status backward(const BackwardParams& params, const Options& options = {});

// The instruction set that `kAuto` means for this dtype on this machine ("avx2", "avx512", "amx").
const char* isa_name(DType dtype);

}  // namespace cpu

namespace cuda {

// Sink attention on a GPU of compute capability 9.0 (H100, H200): bf16 and fp16, head dims 64 and 128. Built
// where nvcc is found. Every pointer but those in the structs themselves is device memory; tensors need
// addresses and strides that are multiples of 16 bytes; the workspace needs an address that is one.
// Launches on the caller's stream, never waits, and can be captured in a CUDA graph. Bitwise repeatable; the
// order of every sum depends on the problem alone.
Status available();                       // ok where the current device can run it
Status supports(const Problem& problem);  // ok where a device that is available can compute it

std::size_t forward_workspace_bytes(const Problem& problem);
std::size_t backward_workspace_bytes(const Problem& problem);

Status forward(const ForwardParams& params, void* stream);  // stream: a cudaStream_t
Status backward(const BackwardParams& params, void* stream);

}  // namespace cuda

}  // namespace sink_attention
