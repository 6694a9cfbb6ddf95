// SPDX-License-Identifier: Apache-2.0
// What the instruction sets share: tile sizes, the view of one head that they work on, and the table of their
// entry points. Plain data only, so that no inline function is compiled twice with different flags.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/sink_attention.h"

namespace sink_attention::cpu {

inline constexpr std::int64_t kRowBlock = 64;  // query rows that stay in registers and first-level cache
inline constexpr std::int64_t kKeyTile = 128;  // keys of one step
inline constexpr std::int64_t kPad = 32;  // the tile unit of every instruction set: dims are padded to it
inline constexpr std::int64_t kMostHeadDim = 256;

// One document of one head: who sees whom. Row i sees keys [first_key(i), end_key(i)).
struct Span {
  std::int64_t rows, keys;
  bool causal;
  std::int64_t window;
};

// Rows of a tensor: d contiguous elements, `stride` elements apart.
struct Rows {
  const void* data;
  std::int64_t stride;
};
struct MutableRows {
  void* data;  // null: not wanted
  std::int64_t stride;
};

// Forward of rows [first_row, end_row) of one document of one query head.
struct ForwardItem {
  Span span;
  DType dtype;
  std::int64_t d;
  float scale;
  double sink;  // -inf: none
  std::int64_t first_row, end_row;
  Rows q, k, v;
  MutableRows out;
  float* lse;             // [rows], or null
  std::int8_t* residual;  // [rows, d], or null
  std::byte* scratch;     // forward_scratch_bytes(), of one thread
};

// Backward of one document of one query head; dk and dv are added to fp32 sums.
struct BackwardItem {
  Span span;
  DType dtype;
  std::int64_t d;
  float scale;
  double sink;
  Rows q, k, v, out, dout;
  const float* lse;             // [rows]
  const float* dlse;            // [rows], or null
  const std::int8_t* residual;  // [rows, d], or null
  MutableRows dq;
  float* dk;  // [keys, padded d] sums without scale, or null
  float* dv;
  double* dsink;  // one number to add to, or null
  std::byte* scratch;
};

// One instruction set.
struct IsaTable {
  const char* name;
  std::size_t (*forward_scratch_bytes)(std::int64_t keys, std::int64_t d);
  std::size_t (*backward_scratch_bytes)(std::int64_t keys, std::int64_t d);
  void (*forward)(const ForwardItem&);
  void (*backward)(const BackwardItem&);
  // Rounds `scale * source` [rows, padded d] into a tensor's rows, zero padding left out.
  void (*store)(const float* source, std::int64_t rows, std::int64_t d, float scale, DType dtype,
                MutableRows to);
};

extern const IsaTable kAvx2Table;
extern const IsaTable kAvx512Table;
extern const IsaTable kAmxTable;

constexpr std::int64_t padded(std::int64_t n) {
  return (n + kPad - 1) / kPad * kPad;
}

}  // namespace sink_attention::cpu
