// SPDX-License-Identifier: Apache-2.0
// Which roundings does a path make? Those that, switched on in the double-precision model, bring it nearest to what the
// path gave.
#pragma once

#include <vector>

#include "src/explain/stage_sample.hpp"

namespace sinkscope {

struct FoundRoundings {
  Roundings roundings;
  double left =
      1;  // of the squared error, mean over heads, while the result is not rounded to its own format
  double rounding = 0;  // what that last rounding makes on average
  bool leaves_much() const { return left > rounding + 0.1; }
};

// Are Delta or the LSE under these to be worked out from all keys of all rows, and is that too much here?
bool is_too_much(const StageInputs& inputs, TensorName tensor, const Roundings& roundings);

// Starts from each of `bases`. `exhaustive`: stages that no flash kernel has are tried too.
FoundRoundings find_roundings(const StageInputs& inputs, const SampledTensor& sample,
                              const std::vector<Roundings>& bases, bool exhaustive);

}  // namespace sinkscope
