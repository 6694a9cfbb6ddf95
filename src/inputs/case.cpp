// SPDX-License-Identifier: Apache-2.0
#include "src/inputs/case.hpp"

#include <cmath>
#include <cstring>

#include "fmt/format.h"

#include "src/core/sha256.hpp"

namespace sinkscope {
namespace {

// The inputs by name, in the order in which they are hashed and reported.
std::vector<std::pair<std::string_view, const Tensor*>> inputs_of(const Case& c) {
  return {{"q", &c.q}, {"k", &c.k}, {"v", &c.v}, {"sinks", &c.sinks}, {"dout", &c.dout}, {"dlse", &c.dlse}};
}

std::string index_text(std::int64_t flat, const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> index(shape.size());
  for (std::size_t i = shape.size(); i-- > 0;) {
    index[i] = flat % shape[i];
    flat /= shape[i];
  }
  return shape_text(index);
}

// "q has 3 NaN, first at [0, 2, 17, 5]", or nothing.
std::string count_text(std::string_view name, const Tensor& tensor, std::string_view what,
                       bool (*bad)(double)) {
  constexpr std::int64_t kChunk = 4096;
  std::vector<double> chunk(kChunk);
  std::int64_t count = 0;
  std::int64_t first = -1;
  for (std::int64_t start = 0; start < tensor.size(); start += kChunk) {
    const std::span<double> values(chunk.data(),
                                   static_cast<std::size_t>(std::min(kChunk, tensor.size() - start)));
    tensor.widen(start, values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!bad(values[i])) continue;
      if (count++ == 0) first = start + static_cast<std::int64_t>(i);
    }
  }
  if (count == 0) return {};
  return fmt::format("{} has {} {}, first at {}", name, count, what, index_text(first, tensor.shape()));
}

}  // namespace

Tensor& Outputs::operator[](TensorName name) {
  return const_cast<Tensor&>(static_cast<const Outputs&>(*this)[name]);
}

const Tensor& Outputs::operator[](TensorName name) const {
  switch (name) {
    case TensorName::kOut:
      return out;
    case TensorName::kLse:
      return lse;
    case TensorName::kDq:
      return dq;
    case TensorName::kDk:
      return dk;
    case TensorName::kDv:
      return dv;
    case TensorName::kDsinks:
      break;
  }
  return dsinks;
}

std::vector<std::int64_t> output_shape(const AttentionShape& s, TensorName name) {
  switch (name) {
    case TensorName::kOut:
    case TensorName::kDq:
      return {s.b, s.hq, s.sq, s.d};
    case TensorName::kLse:
      return {s.b, s.hq, s.sq};
    case TensorName::kDk:
    case TensorName::kDv:
      return {s.b, s.hkv, s.sk, s.d};
    case TensorName::kDsinks:
      break;
  }
  return {s.hq};
}

void set_padding_apart(Case& c) {
  const AttentionShape& s = c.problem.shape;
  Tensor dout = c.dout, dlse = c.dlse;
  bool holds_something = false;
  for (std::int64_t row = 0; row < s.b * s.hq * s.sq && !s.seqlens.empty(); ++row) {
    if (row % s.sq < s.real_rows(row / (s.hq * s.sq), s.sq)) continue;
    for (Tensor* tensor : {&c.dout, &c.dlse}) {
      if (!tensor->given()) continue;
      const std::int64_t columns = tensor == &c.dout ? s.d : 1;
      for (std::int64_t i = row * columns; i < (row + 1) * columns; ++i) {
        holds_something = holds_something || tensor->at(i) != 0;
        tensor->set(i, 0);
      }
    }
  }
  if (!holds_something) return;
  c.padded_dout = std::move(dout);
  c.padded_dlse = std::move(dlse);
}

std::string inputs_sha256(const Case& c) {
  Sha256 hash;
  const auto add_text = [&](const std::string& text) { hash.update(std::as_bytes(std::span(text))); };
  const auto add = [&](std::string_view name, const Tensor& tensor) {
    if (!tensor.given()) return;
    add_text(fmt::format("{} {} {}\n", name, name_of(tensor.dtype()), shape_text(tensor.shape())));
    hash.update({tensor.data(), tensor.bytes()});
  };
  for (const auto& [name, tensor] : inputs_of(c)) add(name, *tensor);
  add("padded_dout", c.padded_dout);
  add("padded_dlse", c.padded_dlse);
  const AttentionShape& s = c.problem.shape;
  add_text(fmt::format("causal {} window {} scale {} cu_q {} cu_k {}\n", s.causal, s.window, s.scale,
                       shape_text(s.cu_q()), shape_text(s.cu_k())));
  if (!s.seqlens.empty()) add_text(fmt::format("seqlens {}\n", shape_text(s.seqlens)));
  return hash.hex();
}

std::vector<std::string> unfit_inputs(const Case& c) {
  const auto is_nan = [](double x) { return std::isnan(x); };
  const auto is_infinite = [](double x) { return std::isinf(x); };
  std::vector<std::string> reasons;
  for (const auto& [name, tensor] : inputs_of(c)) {
    if (!tensor->given()) continue;
    if (std::string text = count_text(name, *tensor, "NaN", is_nan); !text.empty())
      reasons.push_back(std::move(text));
    if (name == "sinks") continue;  // an infinite sink is legal
    if (std::string text = count_text(name, *tensor, "Inf", is_infinite); !text.empty()) {
      reasons.push_back(std::move(text));
    }
  }
  return reasons;
}

}  // namespace sinkscope
