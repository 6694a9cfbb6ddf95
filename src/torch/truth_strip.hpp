// SPDX-License-Identifier: Apache-2.0
// One strip of the truth: some rows of all query heads of a group against the keys that they see, in double
// precision by ATen's products. The equations are those of reference/README.md, written anew.
#pragma once

#include <ATen/ATen.h>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace sinkscope::torch_paths {

// What all strips of a case share.
struct TruthSettings {
  bool causal = true;
  std::int64_t window = 0;  // 0: none
  double scale = 1;
  double rho2 = 0;      // (2^-24 / u)^2
  double eta2 = 0;      // (eta / u)^2
  double flushed2 = 0;  // (2^-126 / u)^2
  bool fp32 = false;    // are fp32's own roundings as large as the format's?
};

// Keys and values of one document and one key/value head on the device, and the sums over its rows that go to
// them. Keys are padded with zeros to a multiple of kKeyPadding, which aligns the rows of a strip.
struct TruthDocument {
  static constexpr std::int64_t kKeyPadding = 16;

  // k, v [keys, d] in any format, on the device.
  TruthDocument(const TruthSettings& settings, std::int64_t rows, const at::Tensor& k, const at::Tensor& v,
                bool backward);

  // Row i sees the keys first_key(i) <= j < end_key(i). (Eq. 1)
  std::int64_t first_key(std::int64_t row) const;
  std::int64_t end_key(std::int64_t row) const;
  std::int64_t padded() const { return vk.size(0); }

  // dv beside dk, and their sigmas, [keys, 2 d], once all strips have been added.
  std::pair<at::Tensor, at::Tensor> key_results() const;

  TruthSettings settings;
  std::int64_t rows, keys, d;
  at::Tensor vk, vk2;      // [padded, 2 d] v beside k; their squares
  at::Tensor squares_to;   // [keys + 1, 2 d] sums of the squares of the first 0 .. keys keys
  double longest_key = 0;  // largest norm of a key
  at::Tensor dvk;          // [padded, 2 d] dv beside dk
  at::Tensor sigma2_dvk;   // [padded, 2 d] without the last terms of Eq. 16 and 17
  at::Tensor row_squares;  // [rows, 2 d] what a row adds to each key that it sees, however small its P
};

// The rows first .. first + positions of `heads` query heads, the heads outermost: m = heads * positions.
struct TruthRows {
  std::int64_t first, positions, heads;
  at::Tensor q, dout;      // [m, d] fp64; dout undefined: forward only
  at::Tensor dlse, sinks;  // [m, 1] fp64
};

struct StripResult {
  at::Tensor out, sigma_out, dq, sigma_dq;     // [m, d]
  at::Tensor lse, sigma_lse, p_sink, entropy;  // [m, 1]
  at::Tensor delta, sigma_delta;               // [m, 1]
  at::Tensor dsinks, sigma2_dsinks;  // [heads], of these rows alone, without the last terms of Eq. 20
};

// Memory for a strip's tensors of rows by keys, used again by every strip.
class StripBuffers {
 public:
  StripBuffers(std::int64_t elements, at::TensorOptions options) : elements_(elements), options_(options) {}
  // Buffer `which` as [rows, keys]; made on first use.
  at::Tensor get(std::size_t which, std::int64_t rows, std::int64_t keys);

 private:
  std::int64_t elements_;
  at::TensorOptions options_;
  std::array<at::Tensor, 6> buffers_;
};

// Computes a strip; adds its part of dk and dv to the document.
StripResult compute_strip(TruthDocument& document, const TruthRows& rows, StripBuffers& buffers);

}  // namespace sinkscope::torch_paths
