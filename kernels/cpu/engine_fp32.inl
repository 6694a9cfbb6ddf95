// SPDX-License-Identifier: Apache-2.0
// Matrix products on fp32 tiles with fused multiply-adds: the engine of AVX2 and AVX-512, for every format.
// 16-bit operands are widened, which is exact.
#pragma once

#include "kernels/cpu/vector.inl"

namespace sink_attention::cpu {
namespace {

// A rows x columns block of C += A B with `kVectors` vectors of columns: the accumulators stay in registers.
// A is read element by element with any strides, B row by row.
template <int kRows, int kVectors>
inline void multiply_block(const float* a, std::int64_t a_row, std::int64_t a_column, const float* b,
                           std::int64_t b_row, float* c, std::int64_t c_row, std::int64_t depth, bool add) {
  Floats sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[i][j] = add ? load(c + i * c_row + j * kLanes) : Floats{};
  }
  for (std::int64_t p = 0; p < depth; ++p) {
    Floats row[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) row[j] = load(b + p * b_row + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Floats element = broadcast(a[i * a_row + p * a_column]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[i][j] += element * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store(c + i * c_row + j * kLanes, sum[i][j]);
  }
}

struct Fp32Engine {
  static constexpr int kBlockRows = 6;
  static constexpr int kBlockVectors = kLanes == 16 ? 4 : 2;

  using Element = float;

  // An operand on the left of a product: any strides.
  struct Left {
    const float* data;
    std::int64_t row, column;
  };
  // An operand on the right: rows are contiguous.
  struct Right {
    const float* data;
    std::int64_t row;
  };

  // Keys (or values) of a span as left operands, both ways round.
  static std::int64_t key_elements(std::int64_t keys, std::int64_t d) {
    return (keys + kKeyTile) * padded(d);
  }
  static std::int64_t transposed_key_elements(std::int64_t, std::int64_t) { return 0; }
  static void pack_keys(DType dtype, Rows from, std::int64_t first, std::int64_t end, std::int64_t d,
                        float* to, float*) {
    for (std::int64_t key = first; key < end; ++key)
      widen_row(dtype, row_of(from, dtype, key), d, to + (key - first) * padded(d));
    std::memset(to + (end - first) * padded(d), 0,
                static_cast<std::size_t>(kKeyTile * padded(d)) * sizeof(float));
  }
  static Left keys(const float* packed, std::int64_t key, std::int64_t d) {
    return {packed + key * padded(d), padded(d), 1};
  }
  static Left transposed_keys(const float* packed, const float*, std::int64_t, std::int64_t key,
                              std::int64_t d) {
    return {packed + key * padded(d), 1, padded(d)};
  }

  // A block of query rows as right operands: [d, rows] (transposed) and [rows, d].
  static std::int64_t row_elements(std::int64_t d) { return kRowBlock * padded(d); }
  static void pack_rows_transposed(const float* rows, std::int64_t d, float* to) {
    for (std::int64_t i = 0; i < kRowBlock; ++i) {
      for (std::int64_t c = 0; c < padded(d); ++c) to[c * kRowBlock + i] = rows[i * padded(d) + c];
    }
  }
  static void pack_rows(const float* rows, std::int64_t d, float* to) {
    std::memcpy(to, rows, static_cast<std::size_t>(row_elements(d)) * sizeof(float));
  }
  static Right rows_transposed(const float* packed, std::int64_t) { return {packed, kRowBlock}; }
  static Right rows(const float* packed, std::int64_t d) { return {packed, padded(d)}; }

  // P^T or dS^T [keys, rows], rounded to the format, as a left and as a right operand: here one and the same.
  static std::int64_t tile_elements() { return kKeyTile * kRowBlock; }
  static void put_pair(const Floats low, const Floats high, std::int64_t key, std::int64_t row, float* left,
                       float*) {
    store(left + key * kRowBlock + row, low);
    store(left + (key + 1) * kRowBlock + row, high);
  }
  static Left tile_left(const float* left) { return {left, kRowBlock, 1}; }
  static Right tile_right(const float* left, const float*) { return {left, kRowBlock}; }

  static void begin() {}
  static void end() {}

  // C [m, n] = A B, or C += A B. n is a multiple of kPad, m of kPad.
  static void multiply(Left a, Right b, float* c, std::int64_t c_row, std::int64_t m, std::int64_t n,
                       std::int64_t depth, bool add) {
    for (std::int64_t j = 0; j < n;) {
      const bool wide = n - j >= kBlockVectors * kLanes;
      for (std::int64_t i = 0; i < m; i += kBlockRows) {
        const Left at = {a.data + i * a.row, a.row, a.column};
        const Right right = {b.data + j, b.row};
        if (wide) {
          multiply_rows<kBlockVectors>(m - i, at, right, c + i * c_row + j, c_row, depth, add);
        } else {
          multiply_rows<1>(m - i, at, right, c + i * c_row + j, c_row, depth, add);
        }
      }
      j += wide ? kBlockVectors * kLanes : kLanes;
    }
  }

 private:
  template <int kVectors>
  static void multiply_rows(std::int64_t rows, Left a, Right b, float* c, std::int64_t c_row,
                            std::int64_t depth, bool add) {
    switch (rows) {
      case 1:
        return multiply_block<1, kVectors>(a.data, a.row, a.column, b.data, b.row, c, c_row, depth, add);
      case 2:
        return multiply_block<2, kVectors>(a.data, a.row, a.column, b.data, b.row, c, c_row, depth, add);
      case 3:
        return multiply_block<3, kVectors>(a.data, a.row, a.column, b.data, b.row, c, c_row, depth, add);
      case 4:
        return multiply_block<4, kVectors>(a.data, a.row, a.column, b.data, b.row, c, c_row, depth, add);
      case 5:
        return multiply_block<5, kVectors>(a.data, a.row, a.column, b.data, b.row, c, c_row, depth, add);
      default:
        return multiply_block<6, kVectors>(a.data, a.row, a.column, b.data, b.row, c, c_row, depth, add);
    }
  }
};

}  // namespace
}  // namespace sink_attention::cpu
