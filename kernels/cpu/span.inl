// SPDX-License-Identifier: Apache-2.0
// Who sees whom, for rows, for tiles and for the pairs inside a tile.
#pragma once

#include "kernels/cpu/vector.inl"

namespace sink_attention::cpu {
namespace {

inline std::int64_t clamp(std::int64_t x, std::int64_t low, std::int64_t high) {
  return x < low ? low : x > high ? high : x;
}
inline std::int64_t least(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

inline std::int64_t end_key(const Span& s, std::int64_t row) {
  return s.causal ? clamp(row + s.keys - s.rows + 1, 0, s.keys) : s.keys;
}
inline std::int64_t first_key(const Span& s, std::int64_t row) {
  return s.window > 0 ? clamp(row + s.keys - s.rows + 1 - s.window, 0, s.keys) : 0;
}

// Does every row of [row, end_row) see every key of [key, key + count)?
inline bool all_visible(const Span& s, std::int64_t row, std::int64_t end_row, std::int64_t key,
                        std::int64_t count) {
  return key + count <= end_key(s, row) && key >= first_key(s, end_row - 1);
}

// The scale as logits are multiplied by it: not 0, so that what is hidden stays infinite.
inline float logit_scale(float scale) {
  constexpr float kLeast = std::numeric_limits<float>::min();
  if (scale < 0) return scale < -kLeast ? scale : -kLeast;
  return scale > kLeast ? scale : kLeast;
}

// Overwrites logits [keys, rows] of pairs that do not see each other with what `scale` makes -inf; `count` keys,
// padding included.
inline void mask_tile(const Span& s, std::int64_t row, std::int64_t key, std::int64_t count, float scale,
                      float* logits) {
  const float hidden = scale < 0 ? kInfinity : -kInfinity;
  const std::int64_t diagonal = s.keys - s.rows;  // key j is row i's own when j = i + diagonal
  for (std::int64_t k = 0; k < count; ++k) {
    const std::int64_t j = key + k;
    std::int64_t low = 0;
    std::int64_t high = j < s.keys ? kRowBlock : 0;
    if (s.causal) low = clamp(j - diagonal - row, 0, kRowBlock);
    if (s.window > 0) high = least(high, clamp(j - diagonal + s.window - row, 0, kRowBlock));
    float* const line = logits + k * kRowBlock;
    for (std::int64_t i = 0; i < least(low, kRowBlock); ++i) line[i] = hidden;
    for (std::int64_t i = high; i < kRowBlock; ++i) line[i] = hidden;
  }
}

// A piece of scratch, cut off the front of what is left.
template <typename T>
inline T* take(std::byte*& scratch, std::int64_t count) {
  T* const piece = reinterpret_cast<T*>(scratch);
  scratch += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
  return piece;
}
inline std::size_t bytes_of(std::int64_t count, std::size_t size) {
  return (static_cast<std::size_t>(count) * size + 63) / 64 * 64;
}

}  // namespace
}  // namespace sink_attention::cpu
