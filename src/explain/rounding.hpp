// SPDX-License-Identifier: Apache-2.0
// The same function, computed worse: attention in double with roundings switched on at chosen stages.
#pragma once

#include <string>
#include <vector>

#include "src/explain/head_function.hpp"

namespace sinkscope {

// Where an attention that writes its scores out rounds them to the case's format; products always are.
struct RoundingModel {
  std::string cause;  // "rounding:softmax_bf16"
  std::string sentence;
  std::string fix;
  bool softmax = false;  // the probabilities and their backward too, not only the shifted logits and dP
};

// The models that are tried, for a case of 16 bits; none in fp32.
std::vector<RoundingModel> rounding_models(const Case& c);

// Is the function one that the models can be run on? Other masks, sinks, scales, heads and weights are; other backwards are
// not, nor softcaps, layouts, infinite sinks and functions that hold for some rows only.
bool can_emulate(const HeadFunction& f);

// What a head comes to when `function` is computed under a model: values alone, no sigma. The steps and their roundings are
// those of transformers' eager_attention_forward of GPT-OSS and its autograd on a GPU (src/torch/eager.cpp runs them
// through libtorch). Rows outside of `rows` are left out, and the backward where it is not asked for.
HeadResult emulate(const Case& c, std::int64_t batch, std::int64_t head, const HeadFunction& function,
                   const RoundingModel& model, Range rows, bool backward);

}  // namespace sinkscope
