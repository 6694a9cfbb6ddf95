// SPDX-License-Identifier: Apache-2.0
// The backward of one head: blocks of 64 rows, for each the visible keys in tiles of 128. P and dS are
// recomputed transposed, [keys, rows]; dq of a block stays in cache, dk and dv are added to fp32 sums over
// all rows.
#pragma once

#include <cmath>

#include "kernels/cpu/span.inl"

namespace sink_attention::cpu {
namespace {

template <typename Engine>
struct BackwardScratch {
  using Element = typename Engine::Element;
  Element *k, *v, *k_transposed;
  Element *q, *q_transposed, *dout, *dout_transposed;
  Element *p_left, *ds_left, *ds_right;
  float *q_rows, *dout_rows, *s, *dp, *dq;

  static std::size_t bytes(std::int64_t keys, std::int64_t d) {
    return bytes_of(Engine::key_elements(keys, d), sizeof(Element)) * 2 +
           bytes_of(Engine::transposed_key_elements(keys, d), sizeof(Element)) +
           bytes_of(Engine::row_elements(d), sizeof(Element)) * 4 +
           bytes_of(Engine::tile_elements(), sizeof(Element)) * 3 + bytes_of(kRowBlock * padded(d), 4) * 3 +
           bytes_of(Engine::tile_elements(), 4) * 2;
  }

  BackwardScratch(std::byte* scratch, std::int64_t keys, std::int64_t d)
      : k(take<Element>(scratch, Engine::key_elements(keys, d))),
        v(take<Element>(scratch, Engine::key_elements(keys, d))),
        k_transposed(take<Element>(scratch, Engine::transposed_key_elements(keys, d))),
        q(take<Element>(scratch, Engine::row_elements(d))),
        q_transposed(take<Element>(scratch, Engine::row_elements(d))),
        dout(take<Element>(scratch, Engine::row_elements(d))),
        dout_transposed(take<Element>(scratch, Engine::row_elements(d))),
        p_left(take<Element>(scratch, Engine::tile_elements())),
        ds_left(take<Element>(scratch, Engine::tile_elements())),
        ds_right(take<Element>(scratch, Engine::tile_elements())),
        q_rows(take<float>(scratch, kRowBlock * padded(d))),
        dout_rows(take<float>(scratch, kRowBlock * padded(d))),
        s(take<float>(scratch, Engine::tile_elements())),
        dp(take<float>(scratch, Engine::tile_elements())),
        dq(take<float>(scratch, kRowBlock * padded(d))) {}
};

// What each row of a block needs beside its vectors.
struct RowFacts {
  alignas(64) float lse[kRowBlock];    // +inf where the row has nothing to give: its P is 0
  alignas(64) float shift[kRowBlock];  // Delta - dLSE
};

// out with its rounding residual put back.
inline float with_residual(float stored, std::int8_t residual, DType dtype) {
  if (dtype == DType::kBf16) {
    std::int32_t bits;
    std::memcpy(&bits, &stored, 4);
    bits += static_cast<std::int32_t>(residual) * 256;
    float exact;
    std::memcpy(&exact, &bits, 4);
    return exact;
  }
  int exponent = -14;
  if (std::fabs(stored) >= 0x1p-14F) exponent = std::ilogb(stored);
  return stored + std::ldexp(static_cast<float>(residual), exponent - 18);
}

// Loads a block's q and dout, and works out Delta = dout.out per row; adds the block to dsink = sum p (dLSE -
// Delta).
template <DType dtype>
void load_rows(const BackwardItem& item, std::int64_t row, std::int64_t count, float* q_rows,
               float* dout_rows, RowFacts& facts) {
  const std::int64_t d = item.d;
  alignas(64) float out[kMostHeadDim];
  for (std::int64_t i = 0; i < kRowBlock; ++i) {
    float* const q = q_rows + i * padded(d);
    float* const dout = dout_rows + i * padded(d);
    facts.lse[i] = kInfinity;
    facts.shift[i] = 0;
    if (i >= count) {
      std::memset(q, 0, static_cast<std::size_t>(padded(d)) * sizeof(float));
      std::memset(dout, 0, static_cast<std::size_t>(padded(d)) * sizeof(float));
      continue;
    }
    widen_row(dtype, row_of(item.q, dtype, row + i), d, q);
    widen_row(dtype, row_of(item.dout, dtype, row + i), d, dout);
    widen_row(dtype, row_of(item.out, dtype, row + i), d, out);
    if (item.residual != nullptr) {
      for (std::int64_t c = 0; c < d; ++c)
        out[c] = with_residual(out[c], item.residual[(row + i) * d + c], dtype);
    }
    double delta = 0;
    for (std::int64_t c = 0; c < d; ++c) delta += static_cast<double>(dout[c]) * static_cast<double>(out[c]);
    const double shift = delta - (item.dlse != nullptr ? static_cast<double>(item.dlse[row + i]) : 0.0);
    facts.shift[i] = static_cast<float>(shift);
    const float lse = item.lse[row + i];
    if (lse != -kInfinity) facts.lse[i] = lse;
    if (item.dsink != nullptr && item.sink != -static_cast<double>(kInfinity)) {
      const double p =
          item.sink == static_cast<double>(kInfinity) ? 1 : std::exp(item.sink - static_cast<double>(lse));
      *item.dsink -= p * shift;
    }
  }
}

// P = exp(S - LSE) and dS = P (dP - Delta + dLSE) of a tile, rounded to the format as operands.
template <typename Engine, DType dtype>
void probabilities_tile(const float* s, const float* dp, std::int64_t keys, float scale,
                        const RowFacts& facts, const BackwardScratch<Engine>& w) {
  for (std::int64_t i = 0; i < kRowBlock; i += kLanes) {
    const Floats lse = load(facts.lse + i);
    const Floats shift = load(facts.shift + i);
    for (std::int64_t k = 0; k < keys; k += 2) {
      const std::int64_t at = k * kRowBlock + i;
      const Floats low_p = exp2((load(s + at) * scale - lse) * kLog2E);
      const Floats high_p = exp2((load(s + at + kRowBlock) * scale - lse) * kLog2E);
      // Where P is 0 nothing must come through, whatever dP is.
      const Floats low_ds = low_p == Floats{} ? Floats{} : low_p * (load(dp + at) - shift);
      const Floats high_ds = high_p == Floats{} ? Floats{} : high_p * (load(dp + at + kRowBlock) - shift);
      Engine::put_pair(rounded<dtype>(low_p), rounded<dtype>(high_p), k, i, w.p_left, nullptr);
      Engine::put_pair(rounded<dtype>(low_ds), rounded<dtype>(high_ds), k, i, w.ds_left, w.ds_right);
    }
  }
}

template <typename Engine, DType dtype>
void backward_block(const BackwardItem& item, const BackwardScratch<Engine>& w, std::int64_t row) {
  const std::int64_t d = item.d;
  const std::int64_t count = least(kRowBlock, item.span.rows - row);
  RowFacts facts;
  load_rows<dtype>(item, row, count, w.q_rows, w.dout_rows, facts);
  if (item.dq.data == nullptr && item.dk == nullptr && item.dv == nullptr) return;
  Engine::pack_rows_transposed(w.q_rows, d, w.q_transposed);
  Engine::pack_rows_transposed(w.dout_rows, d, w.dout_transposed);
  Engine::pack_rows(w.q_rows, d, w.q);
  Engine::pack_rows(w.dout_rows, d, w.dout);

  std::memset(w.dq, 0, static_cast<std::size_t>(kRowBlock * padded(d)) * sizeof(float));
  const std::int64_t end = end_key(item.span, row + count - 1);
  for (std::int64_t key = first_key(item.span, row); key < end; key += kKeyTile) {
    const std::int64_t keys = padded(least(kKeyTile, end - key));
    Engine::multiply(Engine::keys(w.k, key, d), Engine::rows_transposed(w.q_transposed, d), w.s, kRowBlock,
                     keys, kRowBlock, padded(d), false);
    Engine::multiply(Engine::keys(w.v, key, d), Engine::rows_transposed(w.dout_transposed, d), w.dp,
                     kRowBlock, keys, kRowBlock, padded(d), false);
    if (!all_visible(item.span, row, row + count, key, keys))
      mask_tile(item.span, row, key, keys, item.scale, w.s);
    probabilities_tile<Engine, dtype>(w.s, w.dp, keys, logit_scale(item.scale), facts, w);
    if (item.dv != nullptr) {
      Engine::multiply(Engine::tile_left(w.p_left), Engine::rows(w.dout, d), item.dv + key * padded(d),
                       padded(d), keys, padded(d), kRowBlock, true);
    }
    if (item.dk != nullptr) {
      Engine::multiply(Engine::tile_left(w.ds_left), Engine::rows(w.q, d), item.dk + key * padded(d),
                       padded(d), keys, padded(d), kRowBlock, true);
    }
    if (item.dq.data != nullptr) {
      Engine::multiply(Engine::transposed_keys(w.k, w.k_transposed, item.span.keys, key, d),
                       Engine::tile_right(w.ds_left, w.ds_right), w.dq, kRowBlock, padded(d), kRowBlock, keys,
                       true);
    }
  }
  if (item.dq.data == nullptr) return;
  alignas(64) float line[kMostHeadDim];
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t c = 0; c < d; ++c) line[c] = item.scale * w.dq[c * kRowBlock + i];
    narrow_row(dtype, line, d, row_of(item.dq, dtype, row + i));
  }
}

template <typename Engine, DType dtype>
void backward_rows(const BackwardItem& item) {
  const BackwardScratch<Engine> w(item.scratch, item.span.keys, item.d);
  Engine::pack_keys(dtype, item.k, 0, item.span.keys, item.d, w.k, w.k_transposed);
  Engine::pack_keys(dtype, item.v, 0, item.span.keys, item.d, w.v, nullptr);
  Engine::begin();
  for (std::int64_t row = 0; row < item.span.rows; row += kRowBlock)
    backward_block<Engine, dtype>(item, w, row);
  Engine::end();
}

}  // namespace
}  // namespace sink_attention::cpu
