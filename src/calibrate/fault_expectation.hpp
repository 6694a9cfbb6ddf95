// SPDX-License-Identifier: Apache-2.0
// What explain should say of a planted fault, and which causes predict what it does.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sinkscope {

struct FaultExpectation {
  std::string cause;                // that explain should name; kUnknownCause for what no catalogue has
  std::vector<std::string> family;  // the cause, and those that may predict the same: withheld together
  bool in_one_head = false;         // planted in one head only, so that "all heads" is wrong
};

FaultExpectation expectation_of(std::string_view fault);

// Causes that predict the same on some inputs, and why.
struct CauseFamily {
  std::vector<std::string_view> causes;
  std::string_view reason;
};
const std::vector<CauseFamily>& cause_families();

}  // namespace sinkscope
