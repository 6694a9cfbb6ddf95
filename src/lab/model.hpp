// SPDX-License-Identifier: Apache-2.0
// A GPT-OSS-like language model in ATen, with the parameters and the mathematics of transformers' GptOssForCausalLM.
#pragma once

#include <ATen/ATen.h>
#include <functional>
#include <string>
#include <vector>

#include "src/lab/geometry.hpp"
#include "src/lab/lab.hpp"

namespace sinkscope::lab {

// A parameter and where a gradient of it belongs (`head` of the block says nothing here).
struct Parameter {
  std::string name;  // transformers'
  at::Tensor value;  // fp32, requires grad
  std::int64_t layer = -1;
  BlockKind kind = BlockKind::kOther;
};

// Tokens of a step: [b, s] int64, their positions likewise, and which belong together.
struct Tokens {
  at::Tensor ids, positions;
  std::vector<std::int64_t> docs;  // of a batch of 1; empty: every entry is one document
};

// A layer's attention: q [b, hq, s, d], k and v [b, hkv, s, d] in what the model multiplies in, sinks [hq] fp32, which layer, and
// what it sees; out as q.
using LayerAttention =
    std::function<at::Tensor(std::int64_t layer, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const at::Tensor& sinks, const Geometry& geometry)>;

class Model {
 public:
  Model(const ModelShape& shape, Precision precision, at::Device device);

  const ModelShape& shape() const { return shape_; }
  at::Device device() const { return device_; }
  std::vector<Parameter>& parameters() { return parameters_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }

  // Logits [b, s, vocabulary], fp32.
  at::Tensor forward(const Tokens& tokens, const LayerAttention& attention) const;

 private:
  // Indices into parameters_.
  struct Layer {
    std::size_t input_norm, q, q_bias, k, k_bias, v, v_bias, o, o_bias, sinks, post_norm, router, router_bias,
        gate_up, gate_up_bias, down, down_bias;
  };

  // Of a batch's positions: what turns q and k.
  struct Rotation {
    at::Tensor cos, sin;
  };

  std::size_t add(const std::string& name, at::Tensor value, std::int64_t layer = -1,
                  BlockKind kind = BlockKind::kOther);
  Layer make_layer(std::int64_t index);
  const at::Tensor& of(std::size_t index) const { return parameters_[index].value; }
  at::Tensor in_products(std::size_t index) const { return of(index).to(products_); }
  Rotation rotation_of(const at::Tensor& positions) const;
  at::Tensor normed(const at::Tensor& x, std::size_t weight) const;
  at::Tensor attend(const Layer& layer, std::int64_t index, const at::Tensor& x, const Rotation& rotation,
                    const Tokens& tokens, const LayerAttention& attention) const;
  at::Tensor expert(const Layer& layer, std::int64_t index, const at::Tensor& x) const;
  at::Tensor experts(const Layer& layer, const at::Tensor& x) const;

  ModelShape shape_;
  at::ScalarType products_;
  at::Device device_;
  at::Generator generator_;
  std::vector<Parameter> parameters_;
  std::vector<Layer> layers_;
  std::size_t embedding_ = 0, norm_ = 0, head_ = 0;
};

}  // namespace sinkscope::lab
