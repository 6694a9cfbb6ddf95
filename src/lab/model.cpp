// SPDX-License-Identifier: Apache-2.0
#include "src/lab/model.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <cmath>
#include <utility>

namespace sinkscope::lab {
namespace {

constexpr double kNormEpsilon = 1e-5;   // rms_norm_eps of GPT-OSS
constexpr double kSwigluAlpha = 1.702;  // of GPT-OSS's experts
constexpr double kSwigluLimit = 7;      // likewise

// Halves, not pairs, are rotated. x [b, s, h, d]; cos [b, s, 1, d] with both halves alike, sin with the first half negative.
at::Tensor rotated(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return at::addcmul(x * cos, x.roll(x.size(3) / 2, 3), sin);
}

}  // namespace

Model::Model(const ModelShape& shape, Precision precision, at::Device device)
    : shape_(shape),
      products_(precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat),
      device_(device),
      generator_(at::detail::createCPUGenerator(shape.seed)) {
  const auto width = static_cast<double>(shape.width);
  const auto draw = [&](at::IntArrayRef size, double std) { return at::randn(size, generator_) * std; };
  embedding_ = add("model.embed_tokens.weight", draw({shape.vocabulary, shape.width}, 1));
  for (std::int64_t layer = 0; layer < shape.layers; ++layer) layers_.push_back(make_layer(layer));
  norm_ = add("model.norm.weight", at::ones({shape.width}));
  head_ = add("lm_head.weight", draw({shape.vocabulary, shape.width}, 1 / std::sqrt(width)));
}

std::size_t Model::add(const std::string& name, at::Tensor value, std::int64_t layer, BlockKind kind) {
  parameters_.push_back({name, value.to(device_).set_requires_grad(true), layer, kind});
  return parameters_.size() - 1;
}

Model::Layer Model::make_layer(std::int64_t index) {
  const ModelShape& s = shape_;
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  const auto draw = [&](at::IntArrayRef size, double fan_in) {
    return at::randn(size, generator_) / std::sqrt(fan_in);
  };
  const auto width = static_cast<double>(s.width), q_width = static_cast<double>(s.hq * s.d);
  // What is added to the stream is smaller the more layers add to it (Radford et al., 2019).
  const double deep = 2 * static_cast<double>(s.layers);
  const auto projection = [&](const std::string& name, std::int64_t rows, BlockKind kind, std::size_t& bias) {
    const std::size_t weight =
        add(prefix + "self_attn." + name + ".weight", draw({rows, s.width}, width), index, kind);
    bias = add(prefix + "self_attn." + name + ".bias", at::zeros({rows}), index, kind);
    return weight;
  };
  Layer layer{};
  layer.input_norm = add(prefix + "input_layernorm.weight", at::ones({s.width}), index);
  layer.q = projection("q_proj", s.hq * s.d, BlockKind::kQ, layer.q_bias);
  layer.k = projection("k_proj", s.hkv * s.d, BlockKind::kK, layer.k_bias);
  layer.v = projection("v_proj", s.hkv * s.d, BlockKind::kV, layer.v_bias);
  layer.o = add(prefix + "self_attn.o_proj.weight", draw({s.width, s.hq * s.d}, q_width * deep), index);
  layer.o_bias = add(prefix + "self_attn.o_proj.bias", at::zeros({s.width}), index);
  layer.sinks = add(prefix + "self_attn.sinks", at::randn({s.hq}, generator_) * s.sink_std + s.sink_mean,
                    index, BlockKind::kSink);
  layer.post_norm = add(prefix + "post_attention_layernorm.weight", at::ones({s.width}), index);
  layer.router = add(prefix + "mlp.router.weight", draw({s.experts, s.width}, width), index);
  layer.router_bias = add(prefix + "mlp.router.bias", at::zeros({s.experts}), index);
  layer.gate_up =
      add(prefix + "mlp.experts.gate_up_proj", draw({s.experts, s.width, 2 * s.intermediate}, width), index);
  layer.gate_up_bias =
      add(prefix + "mlp.experts.gate_up_proj_bias", at::zeros({s.experts, 2 * s.intermediate}), index);
  layer.down =
      add(prefix + "mlp.experts.down_proj",
          draw({s.experts, s.intermediate, s.width}, static_cast<double>(s.intermediate) * deep), index);
  layer.down_bias = add(prefix + "mlp.experts.down_proj_bias", at::zeros({s.experts, s.width}), index);
  return layer;
}

at::Tensor Model::normed(const at::Tensor& x, std::size_t weight) const {
  return at::rms_norm(x, {shape_.width}, of(weight), kNormEpsilon).to(products_);
}

at::Tensor Model::attend(const Layer& layer, std::int64_t index, const at::Tensor& x,
                         const Rotation& rotation, const Tokens& tokens,
                         const LayerAttention& attention) const {
  const std::int64_t b = x.size(0), s = x.size(1);
  const auto heads = [&](std::size_t weight, std::size_t bias, std::int64_t count) {
    return at::linear(x, in_products(weight), in_products(bias)).view({b, s, count, shape_.d});
  };
  const at::Tensor q = rotated(heads(layer.q, layer.q_bias, shape_.hq), rotation.cos, rotation.sin);
  const at::Tensor k = rotated(heads(layer.k, layer.k_bias, shape_.hkv), rotation.cos, rotation.sin);
  const at::Tensor v = heads(layer.v, layer.v_bias, shape_.hkv);
  const Geometry geometry{index % 2 == 0 ? shape_.window : 0, tokens.docs};
  const at::Tensor out =
      attention(index, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), of(layer.sinks), geometry);
  return at::linear(out.transpose(1, 2).reshape({b, s, shape_.hq * shape_.d}), in_products(layer.o),
                    in_products(layer.o_bias));
}

// x [tokens, width]. Even columns of gate_up are the gate's: they are taken from the weights, of which there is less than of what
// comes out of them.
at::Tensor Model::expert(const Layer& layer, std::int64_t index, const at::Tensor& x) const {
  const auto column = [&](std::size_t parameter, std::int64_t first) {
    return of(parameter).select(0, index).slice(-1, first, std::nullopt, 2).to(products_).contiguous();
  };
  const auto product = [&](std::int64_t first) {
    return at::addmm(column(layer.gate_up_bias, first), x, column(layer.gate_up, first));
  };
  const at::Tensor gate = product(0).clamp_max(kSwigluLimit);
  const at::Tensor up = product(1).clamp(-kSwigluLimit, kSwigluLimit);
  const at::Tensor inner = (up + 1) * gate * at::sigmoid(gate * kSwigluAlpha);
  return at::addmm(of(layer.down_bias).select(0, index).to(products_), inner,
                   of(layer.down).select(0, index).to(products_));
}

// Every expert computes every token, and those that the router did not choose have weight 0. The router of one expert gives it
// weight 1 whatever it says.
at::Tensor Model::experts(const Layer& layer, const at::Tensor& x) const {
  const at::Tensor flat = x.reshape({-1, shape_.width});
  if (shape_.experts == 1) return expert(layer, 0, flat).view(x.sizes());
  const at::Tensor logits = at::linear(flat, in_products(layer.router), in_products(layer.router_bias));
  const auto [top, chosen] = at::topk(logits, shape_.experts_per_token);
  const at::Tensor weights =
      at::zeros_like(logits).scatter(1, chosen, at::softmax(top, -1));  // [tokens, experts]
  at::Tensor sum;
  for (std::int64_t i = 0; i < shape_.experts; ++i) {
    const at::Tensor weighted = expert(layer, i, flat) * weights.select(1, i).unsqueeze(1);
    sum = sum.defined() ? sum + weighted : weighted;
  }
  return sum.view(x.sizes());
}

Model::Rotation Model::rotation_of(const at::Tensor& positions) const {
  const at::Tensor powers =
      at::arange(0, shape_.d, 2, at::TensorOptions().dtype(at::kFloat).device(device_)) /
      static_cast<double>(shape_.d);
  const at::Tensor frequencies = at::pow(shape_.rope_theta, -powers);
  const at::Tensor angles = (positions.to(at::kFloat).unsqueeze(-1) * frequencies).unsqueeze(2);
  const at::Tensor cos = at::cos(angles), sin = at::sin(angles);
  return {at::cat({cos, cos}, -1).to(products_), at::cat({-sin, sin}, -1).to(products_)};
}

at::Tensor Model::forward(const Tokens& tokens, const LayerAttention& attention) const {
  const Rotation rotation = rotation_of(tokens.positions);
  at::Tensor x = at::embedding(of(embedding_), tokens.ids);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    x = x +
        attend(layer, static_cast<std::int64_t>(i), normed(x, layer.input_norm), rotation, tokens, attention);
    x = x + experts(layer, normed(x, layer.post_norm));
  }
  return at::linear(normed(x, norm_), in_products(head_)).to(at::kFloat);
}

}  // namespace sinkscope::lab
