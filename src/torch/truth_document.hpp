// SPDX-License-Identifier: Apache-2.0
// One document of one key/value head, as the truth by libtorch's products walks over it: who sees whom, keys and
// values on the device, and the sums that go to them. The equations are those of reference/README.md.
#pragma once

#include <ATen/ATen.h>
#include <cstdint>
#include <utility>

namespace sinkscope::torch_paths {

// What all strips of a case share.
struct TruthSettings {
  bool causal = true;
  std::int64_t window = 0;  // 0: none
  double scale = 1;
  double u = 1;         // the format's unit roundoff
  double rho2 = 0;      // (2^-24 / u)^2
  double eta2 = 0;      // (eta / u)^2
  double flushed2 = 0;  // (2^-126 / u)^2
  bool fp32 = false;    // are fp32's own roundings as large as the format's?
};

// Keys and values of one document and one key/value head on the device, and the sums over its rows that go to
// them. Keys are padded with zeros to a multiple of kKeyPadding, which aligns the rows of a strip.
struct TruthDocument {
  static constexpr std::int64_t kKeyPadding = 16;
  static std::int64_t padded(std::int64_t count) {
    return (count + kKeyPadding - 1) / kKeyPadding * kKeyPadding;
  }

  // k, v [keys, d] in any format, on the device.
  TruthDocument(const TruthSettings& settings, std::int64_t rows, const at::Tensor& k, const at::Tensor& v,
                bool backward);

  // Row i sees the keys first_key(i) <= j < end_key(i). (Eq. 1)
  std::int64_t first_key(std::int64_t row) const;
  std::int64_t end_key(std::int64_t row) const;

  // dv beside dk, and their sigmas, [keys, 2 d], once all strips have been added.
  std::pair<at::Tensor, at::Tensor> key_results() const;

  TruthSettings settings;
  std::int64_t rows, keys, d;
  at::Tensor vk, vk2;     // [padded, 2 d] v beside k; their squares
  at::Tensor squares_to;  // [keys + 1, 2 d] sums of the squares of the first 0 .. keys keys
  double longest_key = 0, longest_value = 0;  // largest norms
  double largest_key = 0;                     // largest element of a key
  at::Tensor dvk;                             // [padded, 2 d] dv beside dk
  at::Tensor sigma2_dvk;                      // [padded, 2 d] without the last terms of Eq. 16 and 17
  at::Tensor row_squares;  // [rows, 2 d] what a row adds to each key that it sees, however small its P
};

}  // namespace sinkscope::torch_paths
