// SPDX-License-Identifier: Apache-2.0
// The truth: sink attention forward and backward in double precision, with the unavoidable-rounding scale
// (sigma) of every output. Eigen only. It must know nothing of kernels/ or src/, and is never built with
// -ffast-math. The equations are numbered in reference/README.md; the code cites them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace reference {

// The function: sizes and masks. All tensors are contiguous, row-major, [b, h, s, d].
struct Problem {
  std::int64_t b = 1, hq = 1, hkv = 1, sq = 0, sk = 0, d = 64;
  bool causal = true;       // bottom-right aligned, per document
  std::int64_t window = 0;  // 0: none; counts the row's own key; causal only
  double scale = 0.125;
  std::vector<std::int64_t> cu_q;  // both empty, or both [documents + 1] from 0 to sq and to sk (b = 1)
  std::vector<std::int64_t> cu_k;
};

// Inputs, widened from what the judged paths saw. `sinks`, `dlse` may be empty (no sink; zero).
// `dout` empty: forward only.
struct Inputs {
  std::span<const double> q;      // [b, hq, sq, d]
  std::span<const double> k;      // [b, hkv, sk, d]
  std::span<const double> v;      // [b, hkv, sk, d]
  std::span<const double> sinks;  // [hq]
  std::span<const double> dout;   // [b, hq, sq, d]
  std::span<const double> dlse;   // [b, hq, sq]
};

// The format that the judged paths compute in; it enters sigma only, never a value.
struct Rounding {
  double unit_roundoff = 0x1p-8;   // u: bf16 2^-8, fp16 2^-11, fp32 2^-24
  double underflow = 0x1p-126;     // eta: 2^-25 in fp16, else 2^-126
  bool dsinks_in_16_bits = false;  // adds dsink^2 to sigma_dsink^2
};

struct Options {
  int threads = 0;  // 0: all hardware threads; the result does not depend on it
  bool sigma =
      true;  // also compute the sigmas (seven more matmuls, in fp32 eight, beside the six of the values)
};

// One value per element of each output. Empty where not computed.
struct Tensors {
  std::vector<double> out;     // [b, hq, sq, d]
  std::vector<double> lse;     // [b, hq, sq]
  std::vector<double> delta;   // [b, hq, sq]
  std::vector<double> dq;      // [b, hq, sq, d]
  std::vector<double> dk;      // [b, hkv, sk, d]
  std::vector<double> dv;      // [b, hkv, sk, d]
  std::vector<double> dsinks;  // [hq]
};

struct Result {
  Tensors value;
  Tensors sigma;                // standard deviation in units of u (of 2^-24 for lse); same shapes as `value`
  std::vector<double> p_sink;   // [b, hq, sq] the sink's share of the row, p_i
  std::vector<double> entropy;  // [b, hq, sq] of (P_i., p_i), in nats
};

// Computes the truth. O(s) memory per head: keys are visited in tiles.
// Throws std::invalid_argument (value seen, value wanted) when sizes disagree.
Result attention(const Problem& problem, const Inputs& inputs, const Rounding& rounding = {},
                 const Options& options = {});

}  // namespace reference
