// SPDX-License-Identifier: Apache-2.0
// The forward of one head: blocks of 64 rows, for each the visible keys in tiles of 128, with the softmax
// kept up to date from tile to tile (Milakov, Gimelshein 2018; Dao et al. 2022). Tiles lie transposed, [keys,
// rows]: a vector holds neighbouring rows, so that maxima, sums and rescaling need no horizontal operation.
#pragma once

#include <cmath>

#include "kernels/cpu/span.inl"

namespace sink_attention::cpu {
namespace {

template <typename Engine>
struct ForwardScratch {
  using Element = typename Engine::Element;
  Element *k, *v, *v_transposed, *q, *p_left, *p_right;
  float *rows, *s, *out;

  static std::size_t bytes(std::int64_t keys, std::int64_t d) {
    return bytes_of(Engine::key_elements(keys, d), sizeof(Element)) * 2 +
           bytes_of(Engine::transposed_key_elements(keys, d), sizeof(Element)) +
           bytes_of(Engine::row_elements(d), sizeof(Element)) +
           bytes_of(Engine::tile_elements(), sizeof(Element)) * 2 + bytes_of(kRowBlock * padded(d), 4) * 2 +
           bytes_of(Engine::tile_elements(), 4);
  }

  ForwardScratch(std::byte* scratch, std::int64_t keys, std::int64_t d)
      : k(take<Element>(scratch, Engine::key_elements(keys, d))),
        v(take<Element>(scratch, Engine::key_elements(keys, d))),
        v_transposed(take<Element>(scratch, Engine::transposed_key_elements(keys, d))),
        q(take<Element>(scratch, Engine::row_elements(d))),
        p_left(take<Element>(scratch, Engine::tile_elements())),
        p_right(take<Element>(scratch, Engine::tile_elements())),
        rows(take<float>(scratch, kRowBlock * padded(d))),
        s(take<float>(scratch, Engine::tile_elements())),
        out(take<float>(scratch, kRowBlock * padded(d))) {}
};

// Running maximum and sums of each row of a block. `sum` is of P rounded to the format, as it multiplies V,
// so that out's numerator and denominator agree and out has no bias; `exact_sum` is of P before rounding, for
// the LSE.
struct RowState {
  alignas(64) float high[kRowBlock];
  alignas(64) float sum[kRowBlock];
  alignas(64) float exact_sum[kRowBlock];
};

// Folds one tile of raw logits into the state: P^T, rounded to the format, replaces them as an operand;
// `rescale` gets what earlier sums must be multiplied by. Returns whether any of that differs from 1.
template <typename Engine, DType dtype>
bool softmax_tile(const float* s, std::int64_t keys, float scale, RowState& state, float* rescale,
                  typename Engine::Element* p_left, typename Engine::Element* p_right) {
  bool changed = false;
  for (std::int64_t i = 0; i < kRowBlock; i += kLanes) {
    Floats high = load(state.high + i);
    for (std::int64_t k = 0; k < keys; ++k) high = max(load(s + k * kRowBlock + i) * scale, high);
    // A row that has seen no key keeps a pivot of 0: -inf minus -inf would be NaN.
    const Floats pivot = high == broadcast(-kInfinity) ? Floats{} : high;
    const Floats factor = exp2((load(state.high + i) - pivot) * kLog2E);
    Floats sum = load(state.sum + i) * factor;
    Floats exact_sum = load(state.exact_sum + i) * factor;
    for (std::int64_t k = 0; k < keys; k += 2) {
      const Floats low_exact = exp2((load(s + k * kRowBlock + i) * scale - pivot) * kLog2E);
      const Floats high_exact = exp2((load(s + (k + 1) * kRowBlock + i) * scale - pivot) * kLog2E);
      exact_sum += low_exact + high_exact;
      const Floats low_p = rounded<dtype>(low_exact);
      const Floats high_p = rounded<dtype>(high_exact);
      sum += low_p + high_p;
      Engine::put_pair(low_p, high_p, k, i, p_left, p_right);
    }
    store(state.high + i, high);
    store(state.sum + i, sum);
    store(state.exact_sum + i, exact_sum);
    store(rescale + i, factor);
    for (int lane = 0; lane < kLanes; ++lane) changed = changed || factor[lane] != 1.0F;
  }
  return changed;
}

inline double log_add_exp(double a, double b) {
  if (std::isnan(a)) return a;
  const double high = a > b ? a : b;
  const double low = a > b ? b : a;
  if (std::isinf(high)) return high;
  return high + std::log1p(std::exp(low - high));
}

// out's rounding residual in units of 2^-8 of its last place, for an accurate Delta in the backward.
inline std::int8_t residual_of(float exact, float stored, DType dtype) {
  if (dtype == DType::kBf16) {
    std::int32_t exact_bits, stored_bits;
    std::memcpy(&exact_bits, &exact, 4);
    std::memcpy(&stored_bits, &stored, 4);
    return static_cast<std::int8_t>(
        clamp((static_cast<std::int64_t>(exact_bits) - stored_bits + 128) >> 8, -128, 127));
  }
  int exponent = -14;
  if (std::fabs(stored) >= 0x1p-14F) exponent = std::ilogb(stored);
  return static_cast<std::int8_t>(clamp(std::lrint(std::ldexp(exact - stored, 18 - exponent)), -128, 127));
}

// Normalises a block, folds the sink into the LSE with the larger of the two as pivot, and writes the rows.
template <typename Engine, DType dtype>
void finish_rows(const ForwardItem& item, std::int64_t row, std::int64_t count, const RowState& state,
                 const float* out) {
  alignas(64) float line[kMostHeadDim];
  alignas(64) float stored[kMostHeadDim];
  for (std::int64_t i = 0; i < count; ++i) {
    const bool no_keys = state.high[i] == -kInfinity && state.sum[i] == 0;  // not where logits are NaN
    const auto with_sink = [&](float sum) {
      const double keys_lse =
          static_cast<double>(state.high[i]) + (no_keys ? 0 : std::log(static_cast<double>(sum)));
      return log_add_exp(keys_lse, item.sink);
    };
    const double lse = with_sink(state.exact_sum[i]);
    const double divisor = with_sink(state.sum[i]);
    // exp(high - divisor): 1 / sum without a sink.
    const bool empty = no_keys || divisor == static_cast<double>(kInfinity);
    const float factor =
        empty ? 0.0F : static_cast<float>(std::exp(static_cast<double>(state.high[i]) - divisor));
    for (std::int64_t c = 0; c < item.d; ++c) line[c] = empty ? 0.0F : out[c * kRowBlock + i] * factor;
    void* const to = row_of(item.out, dtype, row + i);
    narrow_row(dtype, line, item.d, to);
    if (item.lse != nullptr) item.lse[row + i] = static_cast<float>(lse);
    if (item.residual != nullptr) {
      widen_row(dtype, to, item.d, stored);
      for (std::int64_t c = 0; c < item.d; ++c)
        item.residual[(row + i) * item.d + c] = residual_of(line[c], stored[c], dtype);
    }
  }
}

template <typename Engine, DType dtype>
void forward_block(const ForwardItem& item, const ForwardScratch<Engine>& w, std::int64_t row,
                   std::int64_t first_packed, std::int64_t packed_keys) {
  const std::int64_t d = item.d;
  const std::int64_t count = least(kRowBlock, item.end_row - row);
  for (std::int64_t i = 0; i < kRowBlock; ++i) {
    if (i < count) {
      widen_row(dtype, row_of(item.q, dtype, row + i), d, w.rows + i * padded(d));
    } else {
      std::memset(w.rows + i * padded(d), 0, static_cast<std::size_t>(padded(d)) * sizeof(float));
    }
  }
  Engine::pack_rows_transposed(w.rows, d, w.q);

  RowState state;
  alignas(64) float rescale[kRowBlock];
  for (std::int64_t i = 0; i < kRowBlock; ++i) {
    state.high[i] = -kInfinity;
    state.sum[i] = state.exact_sum[i] = 0;
  }
  std::memset(w.out, 0, static_cast<std::size_t>(kRowBlock * padded(d)) * sizeof(float));
  const std::int64_t end = end_key(item.span, row + count - 1);
  for (std::int64_t key = first_key(item.span, row); key < end; key += kKeyTile) {
    const std::int64_t keys = padded(least(kKeyTile, end - key));
    const std::int64_t at = key - first_packed;
    Engine::multiply(Engine::keys(w.k, at, d), Engine::rows_transposed(w.q, d), w.s, kRowBlock, keys,
                     kRowBlock, padded(d), false);
    if (!all_visible(item.span, row, row + count, key, keys))
      mask_tile(item.span, row, key, keys, item.scale, w.s);
    if (softmax_tile<Engine, dtype>(w.s, keys, logit_scale(item.scale), state, rescale, w.p_left,
                                    w.p_right)) {
      for (std::int64_t c = 0; c < padded(d); ++c) {
        for (std::int64_t i = 0; i < kRowBlock; i += kLanes) {
          store(w.out + c * kRowBlock + i, load(w.out + c * kRowBlock + i) * load(rescale + i));
        }
      }
    }
    Engine::multiply(Engine::transposed_keys(w.v, w.v_transposed, packed_keys, at, d),
                     Engine::tile_right(w.p_left, w.p_right), w.out, kRowBlock, padded(d), kRowBlock, keys,
                     true);
  }
  finish_rows<Engine, dtype>(item, row, count, state, w.out);
}

template <typename Engine, DType dtype>
void forward_rows(const ForwardItem& item) {
  if (item.first_row >= item.end_row) return;
  const std::int64_t first = first_key(item.span, item.first_row);
  const std::int64_t end =
      end_key(item.span, item.end_row - 1) > first ? end_key(item.span, item.end_row - 1) : first;
  const ForwardScratch<Engine> w(item.scratch, end - first, item.d);
  Engine::pack_keys(dtype, item.k, first, end, item.d, w.k, nullptr);
  Engine::pack_keys(dtype, item.v, first, end, item.d, w.v, w.v_transposed);
  Engine::begin();
  for (std::int64_t row = item.first_row; row < item.end_row; row += kRowBlock) {
    forward_block<Engine, dtype>(item, w, row, first, end - first);
  }
  Engine::end();
}

}  // namespace
}  // namespace sink_attention::cpu
