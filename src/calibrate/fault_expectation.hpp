// SPDX-License-Identifier: Apache-2.0
// What explain should say of a planted fault, and which causes may predict what it does.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sinkscope {

struct FaultExpectation {
  std::string cause;                // that explain should name; kUnknownCause for what no catalogue has
  std::vector<std::string> family;  // the cause, and those that may predict the same: withheld together
  bool in_one_head = false;         // planted in one head only, so that "all heads" is wrong
  bool loses_dsinks = false;        // gives the sink no gradient, which stays true whatever is withheld
};

FaultExpectation expectation_of(std::string_view fault);

// Where one of `of` is withheld, `with` are too: they predict what it does, on some inputs or in some heads.
struct CauseFamily {
  std::vector<std::string_view> of, with;
  std::string_view reason;
};
const std::vector<CauseFamily>& cause_families();

}  // namespace sinkscope
