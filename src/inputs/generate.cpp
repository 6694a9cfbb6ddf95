// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/core/parallel.hpp"
#include "src/inputs/case.hpp"
#include "src/inputs/philox.hpp"

namespace sinkscope {
namespace {

enum class Stream : std::uint64_t { kQ = 1, kK, kV, kDout, kDlse, kSinks };

// Element `index` of a stream, about N(0, 1): the sum of eight uniforms of 16 bits, in whole numbers, so that
// every machine gets the same bits. Its tails end at 4.9.
double normal(std::uint64_t seed, Stream stream, std::uint64_t index) {
  const PhiloxBlock block = philox(seed, index, static_cast<std::uint64_t>(stream));
  std::int64_t sum = 0;
  for (const std::uint32_t word : block) sum += static_cast<std::int64_t>(word & 0xFFFF) + (word >> 16);
  constexpr double kMean = 8 * 65535 / 2.0;
  constexpr double kDeviation = 53509.92;  // sqrt(8 (2^32 - 1) / 12)
  return (static_cast<double>(sum) - kMean) / kDeviation;
}

std::uint32_t bits(std::uint64_t seed, Stream stream, std::uint64_t index) {
  return philox(seed, index, static_cast<std::uint64_t>(stream) + 0x100)[0];
}

// Where an element is: its head, its row (query or key position), and how far the next row is.
struct Place {
  std::uint64_t index;
  std::int64_t head, heads, row, row_stride;
};

// -2 .. 2, mostly 0: every product and most sums are exact in every format.
double small_integer(std::uint64_t seed, Stream stream, std::uint64_t index) {
  const std::uint32_t random = bits(seed, stream, index);
  return (random & 3) != 0 ? 0 : static_cast<double>((random >> 2) % 5) - 2;
}

double gaussian(std::uint64_t seed, Stream stream, const Place& at) {
  return normal(seed, stream, at.index);
}

double integers(std::uint64_t seed, Stream stream, const Place& at) {
  return small_integer(seed, stream, at.index);
}

// Values of neighbouring keys nearly cancel: 64 and -64, each with noise.
double cancel(std::uint64_t seed, Stream stream, const Place& at) {
  const double noise = normal(seed, stream, at.index);
  if (stream != Stream::kV) return noise;
  return noise + (at.row % 2 == 0 ? 64 : -64);
}

// The last head's upstream gradient is a thousand times the first one's, by equal factors in between, in
// powers of two and their halves so that no library function is needed.
double loud(std::uint64_t seed, Stream stream, const Place& at) {
  const double noise = normal(seed, stream, at.index);
  if (stream != Stream::kDout || at.heads < 2) return noise;
  const double tenths = 10.0 * static_cast<double>(at.head) / static_cast<double>(at.heads - 1);
  const double whole = std::floor(tenths);
  return noise * std::ldexp(1 + (tenths - whole), static_cast<int>(whole));
}

// Keys repeat four times, so each row's maximum does, and values have one sign (arXiv 2510.04212).
double ties(std::uint64_t seed, Stream stream, const Place& at) {
  if (stream == Stream::kV) return std::fabs(normal(seed, stream, at.index)) + 0.5;
  if (stream != Stream::kK) return normal(seed, stream, at.index);
  const auto first_of_four = at.index - static_cast<std::uint64_t>((at.row % 4) * at.row_stride);
  return normal(seed, stream, first_of_four);
}

// Every 97th key points along the common direction of the queries and takes nearly all of the row.
double needle(std::uint64_t seed, Stream stream, const Place& at) {
  const double noise = normal(seed, stream, at.index);
  if (stream == Stream::kQ) return noise + 1;
  if (stream == Stream::kK && at.row % 97 == 11) return 0.25 * noise + 2;
  return noise;
}

using Element = double (*)(std::uint64_t seed, Stream stream, const Place& at);

Element element_of(Fill fill) {
  switch (fill) {
    case Fill::kGaussian:
      return gaussian;
    case Fill::kIntegers:
      return integers;
    case Fill::kCancel:
      return cancel;
    case Fill::kLoud:
      return loud;
    case Fill::kTies:
      return ties;
    case Fill::kNeedle:
      return needle;
  }
  return gaussian;
}

// A tensor [b, heads, rows, d] of the case's format, one (batch, head) at a time.
Tensor generate_tensor(const Problem& p, Stream stream, std::int64_t heads, std::int64_t rows, int threads) {
  const AttentionShape& s = p.shape;
  Tensor tensor(s.dtype, {s.b, heads, rows, s.d});
  const Element element = element_of(p.fill);
  parallel_for(s.b * heads, threads, [&](std::int64_t batch_head) {
    Place at{0, batch_head % heads, heads, 0, s.d};
    for (at.row = 0; at.row < rows; ++at.row) {
      for (std::int64_t column = 0; column < s.d; ++column) {
        const std::int64_t flat = (batch_head * rows + at.row) * s.d + column;
        at.index = static_cast<std::uint64_t>(flat);
        tensor.set(flat, element(p.seed, stream, at));
      }
    }
  });
  return tensor;
}

// The natural logarithm to about 1e-6 from plain arithmetic alone, for the same bits everywhere.
double portable_log(double x) {
  const int exponent = std::ilogb(x);
  const double m = std::ldexp(x, -exponent);  // [1, 2)
  const double y = (m - 1) / (m + 1);
  const double y2 = y * y;
  const double series = 2 * y * (1 + y2 * (1.0 / 3 + y2 * (1.0 / 5 + y2 * (1.0 / 7 + y2 / 9))));
  return series + exponent * 0.6931471805599453;
}

// N(log n, 1), n the keys that a middle row sees: near the LSE of its logits, so that the sink matters,
// taking from a small part to most of the row's mass as in the captures.
double normal_sink(const Problem& p, std::int64_t head) {
  const AttentionShape& s = p.shape;
  std::int64_t keys = s.docs.empty() ? s.sk : s.sk / static_cast<std::int64_t>(s.docs.size());
  if (s.causal) keys = (keys + 1) / 2;
  if (s.window > 0) keys = std::min(keys, s.window);
  const double typical = portable_log(static_cast<double>(std::max<std::int64_t>(1, keys)));
  return typical + normal(p.seed, Stream::kSinks, static_cast<std::uint64_t>(head));
}

double extreme_sink(const Problem& p, std::int64_t head) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  switch (head % 8) {
    case 0:
      return normal_sink(p, head);
    case 1:
      return -kInfinity;
    case 2:
      return kInfinity;
    case 3:
      return 100;
    case 4:
      return -100;
    case 5:
      return 1e4;
    case 6:
      return -1e4;
    default:
      return 0;
  }
}

Tensor generate_sinks(const Problem& p) {
  Tensor sinks(p.sink_dtype, {p.shape.hq});
  for (std::int64_t h = 0; h < p.shape.hq; ++h) {
    const double value = p.sink == SinkKind::kNormal    ? normal_sink(p, h)
                         : p.sink == SinkKind::kExtreme ? extreme_sink(p, h)
                                                        : p.sink_value;
    sinks.set(h, value);
  }
  return sinks;
}

}  // namespace

Case generate_case(const Problem& p, std::string name, int threads) {
  const AttentionShape& s = p.shape;
  Case c;
  c.name = std::move(name);
  c.problem = p;
  c.q = generate_tensor(p, Stream::kQ, s.hq, s.sq, threads);
  c.k = generate_tensor(p, Stream::kK, s.hkv, s.sk, threads);
  c.v = generate_tensor(p, Stream::kV, s.hkv, s.sk, threads);
  if (p.grads.any()) c.dout = generate_tensor(p, Stream::kDout, s.hq, s.sq, threads);
  if (p.sink != SinkKind::kNone) c.sinks = generate_sinks(p);
  if (p.dlse) {
    c.dlse = Tensor(DType::kFp32, {s.b, s.hq, s.sq});
    for (std::int64_t i = 0; i < c.dlse.size(); ++i) {
      c.dlse.set(i, normal(p.seed, Stream::kDlse, static_cast<std::uint64_t>(i)));
    }
  }
  set_padding_apart(c);
  return c;
}

}  // namespace sinkscope
