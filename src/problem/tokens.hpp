// SPDX-License-Identifier: Apache-2.0
// What the parser and the printer of problem lines agree on.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

namespace sinkscope {

inline double default_scale(std::int64_t d) {
  return 1 / std::sqrt(static_cast<double>(d));
}

// A path as one token: white space, backslashes and `#` are written as backslash and the character.
inline std::string quoted(std::string_view path) {
  std::string text;
  for (const char c : path) {
    if (c == ' ' || c == '\t' || c == '\\' || c == '#') text += '\\';
    text += c;
  }
  return text;
}

}  // namespace sinkscope
