// SPDX-License-Identifier: Apache-2.0
// What the kernels of the backward share: tile sizes, their arguments, the layout of the workspace.
//
// A tile of rows or keys starts at a multiple of the tile size within its document. Tiles are numbered through
// all documents without a table: document n owns the numbers from first / size + n on, which is room enough
// whatever the lengths are; a number beyond its document's end stands for nothing.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/schedule.cuh"
#include "kernels/sink_attention.h"

namespace sink_attention::cuda {

inline constexpr int kBackwardKeys = 128;                 // keys of a tile
__host__ __device__ constexpr int backward_rows(int d) {  // rows of a tile
  return d == 64 ? 128 : 64;
}

// What the main kernel needs of each row of a tile, [kRowFacts, rows] floats.
enum RowFact : int {
  kLse2,       // LSE in units of ln 2; +inf where the row has nothing to give: its P is 0
  kShift,      // Delta - dLSE
  kToFixed,    // dq sums are integers in units of 1 / kToFixed, a power of two
  kFromFixed,  // 1 / kToFixed; NaN where dq's bound is not finite
  kRowFacts
};

// The largest magnitudes of a key tile, [kKeyMaxima] words that compare as integers, NaN above all.
enum KeyMaximum : int { kLargestKey, kLongestKey, kLongestValue, kKeyMaxima = 4 };

struct BackwardArguments {
  // The problem; strides of dimensions of size 1 are 0.
  std::int32_t b, hq, hkv, group, sq, sk;
  float scale;
  float scale_log2;  // scale log2 e, at least the least normal number in size
  std::int32_t documents;
  const std::int32_t* cu_q;  // [documents + 1], or null
  const std::int32_t* cu_k;
  DType sink_dtype;

  // How it is shared out: an item is a key tile of one part of a group of query heads, head = kv head * parts +
  // part. Tile numbers run below row_tiles and key_tiles.
  Schedule items;
  std::int32_t parts;
  std::int32_t row_tiles, key_tiles;

  ConstTensor q, k, v, out, dout;
  const void* sinks;            // [hq], or null
  const float* lse;             // [b, hq, sq]
  const std::int8_t* residual;  // [b, hq, sq, d], or null
  const float* dlse;            // [b, hq, sq], or null
  MutableTensor dq, dk, dv;     // each may be null
  float* dsinks;                // [hq], or null

  // The workspace.
  std::int32_t* dq_sums;      // [b, hq, row_tiles, rows * d] in the order of the accumulators
  float* row_facts;           // [b, hq, row_tiles, kRowFacts, rows]
  std::uint32_t* key_maxima;  // [b, hkv, key_tiles, kKeyMaxima]
  double* sink_sums;          // [b, hq, row_tiles]
  float* part_sums;           // [parts, 2, b, hkv, key_tiles, keys * d] in the order of the accumulators
};

struct Range {
  std::int32_t first, end;
  __device__ bool empty() const { return first >= end; }
};

__device__ __forceinline__ Document document_at(const BackwardArguments& a, std::int32_t n) {
  return find_document(a.items, n);
}

// The number of a document's first tile.
__device__ __forceinline__ std::int32_t first_tile(const std::int32_t* cu, std::int32_t n, int size) {
  return cu == nullptr ? 0 : cu[n] / size + n;
}

// The document that owns a tile number.
__device__ inline std::int32_t document_of_tile(const std::int32_t* cu, std::int32_t documents,
                                                std::int32_t tile, int size) {
  if (cu == nullptr) return 0;
  std::int32_t low = 0;
  std::int32_t high = documents - 1;
  while (low < high) {
    const std::int32_t middle = low + (high - low + 1) / 2;
    if (first_tile(cu, middle, size) <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// The rows that see one of `keys`, and the keys that one of `rows` sees; neither given range is empty.
__device__ __forceinline__ Range rows_that_see(const Document& d, Range keys) {
  return {d.first_row(keys.first), d.end_row(keys.end - 1)};
}
__device__ __forceinline__ Range keys_seen_by(const Document& d, Range rows) {
  return {d.first_key(rows.first), d.end_key(rows.end - 1)};
}

// Accumulators of a warpgroup, [64, 8 blocks]: a thread's four numbers of each block of eight columns lie side
// by side, and a warp's are contiguous.
template <int kBlocks>
__device__ __forceinline__ int accumulator_offset(int warp, int block, int lane) {
  return ((warp * kBlocks + block) * 32 + lane) * 4;
}

// Before: the lanes of a quad hold, in v[i], their share (4 bytes each) of 16 bytes i. After: lane t of the quad
// holds all of 16 bytes t.
__device__ __forceinline__ void quad_transpose(std::uint32_t (&v)[4], int lane) {
  const bool odd = (lane & 1) != 0;
  const bool high = (lane & 2) != 0;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t got = __shfl_xor_sync(0xFFFFFFFF, odd ? v[i] : v[i + 1], 1);
    if (odd) {
      v[i] = got;
    } else {
      v[i + 1] = got;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t got = __shfl_xor_sync(0xFFFFFFFF, high ? v[i] : v[i + 2], 2);
    if (high) {
      v[i] = got;
    } else {
      v[i + 2] = got;
    }
  }
}

// Rounds a warp's share of accumulators [64, 8 blocks] and stores it, 16 bytes a lane: rows `row` to `row` + 15
// of a head that has `rows` of them.
template <typename Element, int kBlocks>
__device__ __forceinline__ void store_accumulators(const float (&x)[kBlocks * 4], int lane, int row, int rows,
                                                   Element* to, std::int64_t stride) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = row + lane / 4 + half * 8;
#pragma unroll
    for (int four = 0; four < kBlocks / 4; ++four) {
      std::uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int of = (four * 4 + i) * 4 + half * 2;
        pairs[i] = pack_pair<Element>(x[of], x[of + 1]);
      }
      quad_transpose(pairs, lane);
      if (at < rows) {
        *reinterpret_cast<uint4*>(to + at * stride + (four * 4 + lane % 4) * 8) =
            uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
      }
    }
  }
}

}  // namespace sink_attention::cuda
