// SPDX-License-Identifier: Apache-2.0
// What the parser, the checker and the printer of problem lines agree on.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace sinkscope {

// The most that a size may be.
inline constexpr std::int64_t kMostBatch = 1 << 20;
inline constexpr std::int64_t kMostHeads = 1 << 16;
inline constexpr std::int64_t kMostRows = std::numeric_limits<std::int32_t>::max();
inline constexpr std::int64_t kMostHeadDim = 256;

inline double default_scale(std::int64_t d) {
  return 1 / std::sqrt(static_cast<double>(d));
}

inline std::int64_t total_of(const std::vector<std::int64_t>& lengths) {
  std::int64_t sum = 0;
  for (const std::int64_t length : lengths) sum += length;
  return sum;
}

// A path as one token: white space, backslashes and `#` are written as a backslash and the character.
inline std::string quoted(std::string_view path) {
  std::string text;
  for (const char c : path) {
    if (std::string_view(" \t\r\n\\#").find(c) != std::string_view::npos) text += '\\';
    text += c;
  }
  return text;
}

}  // namespace sinkscope
