// SPDX-License-Identifier: Apache-2.0
#include "src/calibrate/fault_expectation.hpp"

#include <algorithm>

#include "src/explain/finding.hpp"

namespace sinkscope {

const std::vector<CauseFamily>& cause_families() {
  static const std::vector<CauseFamily> kFamilies = {
      {{"scale_missing", "scale_squared", "scale_wrong"},
       "another scale is the wrong scale, whatever its value"},
  };
  return kFamilies;
}

FaultExpectation expectation_of(std::string_view fault) {
  FaultExpectation expected;
  expected.cause = fault == "dq_head_lost" ? "head_zeroed"
                   : fault == "dq_scaled"  ? std::string(kUnknownCause)
                                           : std::string(fault);
  expected.in_one_head = fault == "dq_head_lost" || fault == "head_zeroed" || fault == "stale";
  expected.family = {expected.cause};
  for (const CauseFamily& family : cause_families()) {
    if (std::find(family.causes.begin(), family.causes.end(), expected.cause) == family.causes.end())
      continue;
    for (const std::string_view cause : family.causes) {
      if (cause != expected.cause) expected.family.emplace_back(cause);
    }
  }
  return expected;
}

}  // namespace sinkscope
