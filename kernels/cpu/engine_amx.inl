// SPDX-License-Identifier: Apache-2.0
// Matrix products on bf16 tiles with the AMX unit: TDPBF16PS multiplies a 16 x 32 tile by a 32 x 16 tile into
// fp32. A left operand is row-major; a right one holds pairs of rows side by side ([depth / 2][columns][2],
// "VNNI").
#pragma once

#include "kernels/cpu/vector.inl"

namespace sink_attention::cpu {
namespace {

struct AmxEngine {
  using Element = std::uint16_t;

  struct Left {
    const std::uint16_t* data;
    std::int64_t row;
  };
  struct Right {
    const std::uint16_t* data;
    std::int64_t pair_row;  // elements from one pair of rows to the next
  };

  static std::int64_t key_elements(std::int64_t keys, std::int64_t d) {
    return (keys + kKeyTile) * padded(d);
  }
  static std::int64_t transposed_key_elements(std::int64_t keys, std::int64_t d) {
    return padded(d) * transposed_row(keys);
  }
  static std::int64_t transposed_row(std::int64_t keys) { return padded(keys) + kKeyTile; }
  static void pack_keys(DType dtype, Rows from, std::int64_t first, std::int64_t end, std::int64_t d,
                        std::uint16_t* to, std::uint16_t* transposed) {
    const std::int64_t count = end - first;
    std::memset(to, 0, static_cast<std::size_t>(key_elements(count, d)) * sizeof(*to));
    for (std::int64_t key = 0; key < count; ++key) {
      std::memcpy(to + key * padded(d), row_of(from, dtype, first + key),
                  static_cast<std::size_t>(d) * sizeof(*to));
    }
    if (transposed == nullptr) return;
    const std::int64_t stride = transposed_row(count);
    for (std::int64_t key = 0; key < stride; key += kPad) {
      const bool inside = key < padded(count);
      for (std::int64_t c = 0; c < padded(d); ++c) {
        for (std::int64_t k = key; k < key + kPad; ++k)
          transposed[c * stride + k] = inside ? to[k * padded(d) + c] : std::uint16_t{0};
      }
    }
  }
  static Left keys(const std::uint16_t* packed, std::int64_t key, std::int64_t d) {
    return {packed + key * padded(d), padded(d)};
  }
  static Left transposed_keys(const std::uint16_t*, const std::uint16_t* transposed, std::int64_t count,
                              std::int64_t key, std::int64_t) {
    return {transposed + key, transposed_row(count)};
  }

  static std::int64_t row_elements(std::int64_t d) { return kRowBlock * padded(d); }
  static void pack_rows_transposed(const float* rows, std::int64_t d, std::uint16_t* to) {
    for (std::int64_t i = 0; i < kRowBlock; ++i) {
      for (std::int64_t c = 0; c < padded(d); ++c)
        to[((c / 2) * kRowBlock + i) * 2 + c % 2] = narrow_bf16(rows[i * padded(d) + c]);
    }
  }
  static void pack_rows(const float* rows, std::int64_t d, std::uint16_t* to) {
    for (std::int64_t i = 0; i < kRowBlock; ++i) {
      for (std::int64_t c = 0; c < padded(d); ++c)
        to[((i / 2) * padded(d) + c) * 2 + i % 2] = narrow_bf16(rows[i * padded(d) + c]);
    }
  }
  static Right rows_transposed(const std::uint16_t* packed, std::int64_t) { return {packed, 2 * kRowBlock}; }
  static Right rows(const std::uint16_t* packed, std::int64_t d) { return {packed, 2 * padded(d)}; }

  // Two neighbouring keys of P^T or dS^T, already rounded: row-major for the left operand, interleaved for
  // the right one.
  static std::int64_t tile_elements() { return kKeyTile * kRowBlock; }
  static void put_pair(Floats low, Floats high, std::int64_t key, std::int64_t row, std::uint16_t* left,
                       std::uint16_t* right) {
    const Words low_bits = reinterpret_cast<Words>(low) >> 16;
    const Words high_bits = reinterpret_cast<Words>(high);
    if (left != nullptr) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(left + key * kRowBlock + row),
                          _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(low_bits)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(left + (key + 1) * kRowBlock + row),
                          _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(high_bits >> 16)));
    }
    if (right != nullptr) {
      const Words pairs = low_bits | high_bits;
      std::memcpy(right + (key / 2) * 2 * kRowBlock + 2 * row, &pairs, sizeof pairs);
    }
  }
  static Left tile_left(const std::uint16_t* left) { return {left, kRowBlock}; }
  static Right tile_right(const std::uint16_t*, const std::uint16_t* right) { return {right, 2 * kRowBlock}; }

  // Eight tiles of 16 rows by 64 bytes, for this thread.
  static void begin() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  static void end() { _tile_release(); }

  // C [m, n] = A B, or C += A B, in blocks of 32 x 32: tiles 0 to 3 of C, 4 and 5 of A, 6 and 7 of B.
  static void multiply(Left a, Right b, float* c, std::int64_t c_row, std::int64_t m, std::int64_t n,
                       std::int64_t depth, bool add) {
    const std::int64_t c_bytes = c_row * 4;
    const std::int64_t a_bytes = a.row * 2;
    const std::int64_t b_bytes = b.pair_row * 2;
    for (std::int64_t i = 0; i < m; i += 32) {
      for (std::int64_t j = 0; j < n; j += 32) {
        float* const block = c + i * c_row + j;
        if (add) {
          _tile_loadd(0, block, c_bytes);
          _tile_loadd(1, block + 16, c_bytes);
          _tile_loadd(2, block + 16 * c_row, c_bytes);
          _tile_loadd(3, block + 16 * c_row + 16, c_bytes);
        } else {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        }
        for (std::int64_t p = 0; p < depth; p += 32) {
          const std::uint16_t* const left = a.data + i * a.row + p;
          const std::uint16_t* const right = b.data + (p / 2) * b.pair_row + 2 * j;
          _tile_loadd(4, left, a_bytes);
          _tile_loadd(5, left + 16 * a.row, a_bytes);
          _tile_loadd(6, right, b_bytes);
          _tile_loadd(7, right + 32, b_bytes);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, block, c_bytes);
        _tile_stored(1, block + 16, c_bytes);
        _tile_stored(2, block + 16 * c_row, c_bytes);
        _tile_stored(3, block + 16 * c_row + 16, c_bytes);
      }
    }
  }
};

}  // namespace
}  // namespace sink_attention::cpu
