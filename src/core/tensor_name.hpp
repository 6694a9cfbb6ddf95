// SPDX-License-Identifier: Apache-2.0
// The six outputs of attention, in the one order in which they are computed, recorded and printed.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

namespace sinkscope {

enum class TensorName : std::size_t { kOut, kLse, kDq, kDk, kDv, kDsinks };

inline constexpr std::array kTensorNames = {TensorName::kOut, TensorName::kLse, TensorName::kDq,
                                            TensorName::kDk,  TensorName::kDv,  TensorName::kDsinks};

inline constexpr std::string_view text(TensorName name) {
  constexpr std::array<std::string_view, 6> kText = {"out", "lse", "dq", "dk", "dv", "dsinks"};
  return kText[static_cast<std::size_t>(name)];
}

// Are the heads of this tensor key/value heads?
inline constexpr bool is_of_keys(TensorName name) {
  return name == TensorName::kDk || name == TensorName::kDv;
}

}  // namespace sinkscope
