// SPDX-License-Identifier: Apache-2.0
// A case: one problem with its input tensors in memory, however they came there.
// (make_case in src/capture/capture.hpp makes one from any problem line.)
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "src/core/tensor.hpp"
#include "src/core/tensor_name.hpp"
#include "src/problem/problem.hpp"

namespace sinkscope {

// What an implementation produced. A tensor that is not given was not produced.
struct Outputs {
  Tensor out;     // [b, hq, sq, d]
  Tensor lse;     // [b, hq, sq]
  Tensor dq;      // [b, hq, sq, d]
  Tensor dk;      // [b, hkv, sk, d]
  Tensor dv;      // [b, hkv, sk, d]
  Tensor dsinks;  // [hq]

  Tensor& operator[](TensorName name);
  const Tensor& operator[](TensorName name) const;
};

// The shape of one of them.
std::vector<std::int64_t> output_shape(const AttentionShape& s, TensorName name);

struct Case {
  std::string name;  // a capture's file stem, else p0001, p0002, ...
  Problem problem;   // its shape is filled in, for captures too
  Tensor q;          // [b, hq, sq, d]   always [b, h, s, d] here; problem.layout says how paths get it
  Tensor k;          // [b, hkv, sk, d]
  Tensor v;          // [b, hkv, sk, d]
  Tensor sinks;      // [hq], or not given
  Tensor dout;  // [b, hq, sq, d], or not given: forward only. Zero in rows of padding, as the loss has it
  Tensor dlse;  // [b, hq, sq] fp32, or not given; likewise
  // As they came, where one of them holds something in rows of padding. Paths do not look at these.
  Tensor padded_dout, padded_dlse;
  std::map<std::string, Outputs> recorded;  // outputs that a capture brings, by the name of what made them
  std::map<std::string, std::string> metadata;  // a capture's own words: source, layer, model
};

// Generates the inputs of a problem line (not of a capture): rounded to their format, independent of the
// order and the number of threads.
Case generate_case(const Problem& problem, std::string name, int threads = 0);

// Zeroes dout and dlse in rows of padding (shape.seqlens), and keeps what they held in padded_dout and padded_dlse.
void set_padding_apart(Case& c);

// sha256 over names, formats, shapes and bytes of the inputs.
std::string inputs_sha256(const Case& c);

// "q has 3 NaN, first at [0, 2, 17, 5]": what makes the inputs unfit to judge by; empty when they are fit.
// NaN or Inf in q k v dout dlse, NaN in sinks.
std::vector<std::string> unfit_inputs(const Case& c);

}  // namespace sinkscope
