// SPDX-License-Identifier: Apache-2.0
// What explain says about a path: one finding per cause.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/core/tensor_name.hpp"

namespace sinkscope {

inline constexpr std::string_view kNoCause = "none";              // nothing fails
inline constexpr std::string_view kUnknownCause = "unexplained";  // something fails, no cause fits

// The scope is what was seen to be wrong and is right under the cause. Lists are sorted; `heads` are query heads, but
// where only dk or dv are wrong key/value heads.
struct Finding {
  std::string cause;                    // an id of the catalogue, kNoCause or kUnknownCause
  std::vector<std::string> equivalent;  // other causes that predict the same on this input
  std::vector<TensorName> tensors;
  std::vector<std::int64_t> batches, heads, documents;
  bool all_heads = false, all_documents = true;  // those that are not in the lists could not have shown it
  bool of_keys = false;                          // heads are key/value heads
  std::int64_t first_row = -1, end_row = -1;     // [first, end) where only some rows are concerned; else -1
  double share =
      0;  // of the squared error of what it concerns, removed by the cause; mean over head and tensor
  double residual_z = 0;  // the largest z_rms that is left there
  std::string sentence;   // "the sink is left out of the softmax"
  std::string note;       // parameters: "scale 0.25 in place of 0.125"
  std::string fix;
  std::string evidence;  // where this mistake was met
};

// "0, 2 to 5", of sorted numbers.
std::string numbers_text(const std::vector<std::int64_t>& numbers);

// "out, lse and dq of heads 0 to 3".
std::string scope_text(const Finding& finding);

}  // namespace sinkscope
