// SPDX-License-Identifier: Apache-2.0
// Attention with a sink written down as the formulas stand, in long double, sharing nothing with the
// reference: plain loops, a visibility test per pair. The loss L = sum dout.out + sum dlse.lse is what finite
// differences are taken of.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "reference/attention.hpp"

namespace reference::naive {

using Real = long double;

struct Data {
  Problem problem;
  std::vector<double> q, k, v, sinks, dout, dlse;

  Inputs inputs() const { return {q, k, v, sinks, dout, dlse}; }
};

inline std::vector<double> random_values(std::mt19937_64& engine, std::int64_t count, double scale = 1) {
  std::normal_distribution<double> normal(0, scale);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = normal(engine);
  return values;
}

// Every input drawn N(0, 1); `seed` is explicit.
inline Data random_data(const Problem& p, unsigned seed, bool with_sinks = true, bool with_dlse = true) {
  std::mt19937_64 engine(seed);
  Data data{p, {}, {}, {}, {}, {}, {}};
  data.q = random_values(engine, p.b * p.hq * p.sq * p.d);
  data.k = random_values(engine, p.b * p.hkv * p.sk * p.d);
  data.v = random_values(engine, p.b * p.hkv * p.sk * p.d);
  data.dout = random_values(engine, p.b * p.hq * p.sq * p.d);
  if (with_sinks) data.sinks = random_values(engine, p.hq);
  if (with_dlse) data.dlse = random_values(engine, p.b * p.hq * p.sq);
  return data;
}

// Document of an index, and where that document starts and ends.
struct Extent {
  std::int64_t document, first, end;
};
inline Extent extent_of(const std::vector<std::int64_t>& cu, std::int64_t index, std::int64_t total) {
  if (cu.empty()) return {0, 0, total};
  std::int64_t document = 0;
  while (cu[static_cast<std::size_t>(document + 1)] <= index) ++document;
  return {document, cu[static_cast<std::size_t>(document)], cu[static_cast<std::size_t>(document + 1)]};
}

// The keys of row i's document.
inline Extent keys_of(const Problem& p, std::int64_t i) {
  const std::int64_t document = extent_of(p.cu_q, i, p.sq).document;
  if (p.cu_k.empty()) return {document, 0, p.sk};
  return {document, p.cu_k[static_cast<std::size_t>(document)],
          p.cu_k[static_cast<std::size_t>(document + 1)]};
}

inline bool visible(const Problem& p, std::int64_t i, std::int64_t j) {
  const Extent row = extent_of(p.cu_q, i, p.sq);
  const Extent key = extent_of(p.cu_k, j, p.sk);
  if (row.document != key.document) return false;
  if (!p.causal) return true;
  const std::int64_t distance =
      (i - row.first) + (key.end - key.first) - (row.end - row.first) - (j - key.first);
  return distance >= 0 && (p.window == 0 || distance < p.window);
}

// One row of one query head: probabilities [sk], logits [sk], the LSE and p.
struct Row {
  std::vector<Real> p, s;
  Real lse = 0, p_sink = 0;
  std::int64_t keys = 0;
};
inline Row row_of(const Data& data, std::int64_t batch, std::int64_t h, std::int64_t i) {
  const Problem& p = data.problem;
  const std::int64_t g = h / (p.hq / p.hkv);
  Row row{std::vector<Real>(static_cast<std::size_t>(p.sk)),
          std::vector<Real>(static_cast<std::size_t>(p.sk))};
  const Real sink =
      data.sinks.empty() ? -INFINITY : static_cast<Real>(data.sinks[static_cast<std::size_t>(h)]);
  Real high = sink;
  for (std::int64_t j = 0; j < p.sk; ++j) {
    if (!visible(p, i, j)) continue;
    Real dot = 0;
    for (std::int64_t c = 0; c < p.d; ++c) {
      dot += static_cast<Real>(data.q[static_cast<std::size_t>(((batch * p.hq + h) * p.sq + i) * p.d + c)]) *
             static_cast<Real>(data.k[static_cast<std::size_t>(((batch * p.hkv + g) * p.sk + j) * p.d + c)]);
    }
    row.s[static_cast<std::size_t>(j)] = static_cast<Real>(p.scale) * dot;
    high = std::fmax(high, row.s[static_cast<std::size_t>(j)]);
    ++row.keys;
  }
  if (std::isinf(high)) {
    row.lse = high;
    row.p_sink = high > 0 ? 1 : 0;
    return row;
  }
  Real sum = std::exp(sink - high);
  for (std::int64_t j = 0; j < p.sk; ++j) {
    if (visible(p, i, j)) sum += std::exp(row.s[static_cast<std::size_t>(j)] - high);
  }
  row.lse = high + std::log(sum);
  row.p_sink = std::exp(sink - row.lse);
  for (std::int64_t j = 0; j < p.sk; ++j) {
    if (visible(p, i, j))
      row.p[static_cast<std::size_t>(j)] = std::exp(row.s[static_cast<std::size_t>(j)] - row.lse);
  }
  return row;
}

inline Real loss(const Data& data) {
  const Problem& p = data.problem;
  Real total = 0;
  for (std::int64_t batch = 0; batch < p.b; ++batch) {
    for (std::int64_t h = 0; h < p.hq; ++h) {
      for (std::int64_t i = 0; i < p.sq; ++i) {
        const Row row = row_of(data, batch, h, i);
        const std::int64_t flat = (batch * p.hq + h) * p.sq + i;
        if (!data.dlse.empty() && std::isfinite(row.lse))
          total += data.dlse[static_cast<std::size_t>(flat)] * row.lse;
        const std::int64_t kv = batch * p.hkv + h / (p.hq / p.hkv);
        for (std::int64_t j = 0; j < p.sk; ++j) {
          for (std::int64_t c = 0; c < p.d; ++c) {
            total += row.p[static_cast<std::size_t>(j)] *
                     static_cast<Real>(data.v[static_cast<std::size_t>((kv * p.sk + j) * p.d + c)]) *
                     static_cast<Real>(data.dout[static_cast<std::size_t>(flat * p.d + c)]);
          }
        }
      }
    }
  }
  return total;
}

// Central difference of the loss by one input element.
inline double derivative(Data& data, double& element) {
  constexpr double kStep = 0x1p-13;
  const double saved = element;
  element = saved + kStep;
  const Real above = loss(data);
  element = saved - kStep;
  const Real below = loss(data);
  element = saved;
  return static_cast<double>((above - below) / (2 * static_cast<Real>(kStep)));
}

}  // namespace reference::naive
