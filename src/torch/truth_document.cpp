// SPDX-License-Identifier: Apache-2.0
#include "src/torch/truth_document.hpp"

#include <algorithm>
#include <cmath>

namespace sinkscope::torch_paths {

TruthDocument::TruthDocument(const TruthSettings& s, std::int64_t row_count, const at::Tensor& k,
                             const at::Tensor& v, bool backward)
    : settings(s), rows(row_count), keys(k.size(0)), d(k.size(1)) {
  const auto options = k.options().dtype(at::kDouble);
  vk = at::zeros({padded(keys), 2 * d}, options);
  vk.narrow(0, 0, keys).narrow(1, 0, d).copy_(v);
  vk.narrow(0, 0, keys).narrow(1, d, d).copy_(k);
  vk2 = vk.square();
  squares_to = at::zeros({keys + 1, 2 * d}, options);
  if (keys > 0) {
    squares_to.narrow(0, 1, keys).copy_(vk2.narrow(0, 0, keys).cumsum(0));
    const at::Tensor v2 = vk2.narrow(1, 0, d), k2 = vk2.narrow(1, d, d);
    const at::Tensor most = at::stack({k2.sum(1).max(), v2.sum(1).max(), k2.max()}).sqrt().cpu();
    longest_key = most[0].item<double>();
    longest_value = most[1].item<double>();
    largest_key = most[2].item<double>();
  }
  if (!backward) return;
  dvk = at::zeros_like(vk);
  sigma2_dvk = at::zeros_like(vk);
  row_squares = at::zeros({rows, 2 * d}, options);
}

std::int64_t TruthDocument::first_key(std::int64_t row) const {
  return settings.window > 0 ? std::clamp<std::int64_t>(row + keys - rows + 1 - settings.window, 0, keys) : 0;
}

std::int64_t TruthDocument::end_key(std::int64_t row) const {
  return settings.causal ? std::clamp<std::int64_t>(row + keys - rows + 1, 0, keys) : keys;
}

std::pair<at::Tensor, at::Tensor> TruthDocument::key_results() const {
  // The rows that see a key, and so bring it e^2: from its own row on, for as long as the window is.
  const at::Tensor key = at::arange(keys, vk.options().dtype(at::kLong));
  const at::Tensor from = settings.causal ? (key + (rows - keys)).clamp(0, rows) : at::zeros_like(key);
  const at::Tensor to =
      settings.window > 0 ? (key + (rows - keys + settings.window)).clamp(0, rows) : at::full_like(key, rows);
  at::Tensor squares = at::zeros({rows + 1, 2 * d}, vk.options());
  if (rows > 0) squares.narrow(0, 1, rows).copy_(row_squares.cumsum(0));
  const at::Tensor seen = squares.index_select(0, to) - squares.index_select(0, from);
  const at::Tensor values = dvk.narrow(0, 0, keys);
  const at::Tensor sigma2 = sigma2_dvk.narrow(0, 0, keys) + seen + values.square();
  return {values, (sigma2 + settings.eta2).sqrt_()};
}

}  // namespace sinkscope::torch_paths
