// SPDX-License-Identifier: Apache-2.0
#include "src/calibrate/fault_expectation.hpp"

#include <algorithm>

#include "src/explain/finding.hpp"

namespace sinkscope {
namespace {

bool contains(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

const std::vector<CauseFamily>& cause_families() {
  static const std::vector<CauseFamily> kFamilies = {
      {{"scale_missing", "scale_squared"}, {"scale_wrong"}, "its free constant finds 1 and the square"},
      {{"scale_wrong"}, {"scale_missing", "scale_squared"}, "1 or the square may be the constant"},
      {{"sink_scaled", "sink_log2", "sink_twice", "sink_zero_added", "sink_permuted", "sink_bf16"},
       {"sink_scaled", "sink_log2", "sink_twice", "sink_zero_added", "sink_permuted", "sink_bf16"},
       "each is another number in place of the sink, and in some head two of these numbers are one"},
      {{"sink_bf16", "sink_log2"},
       {"scale_wrong"},
       "where a sink is moved by little, a scale off by little fits too"},
      {{"sink_ignored", "lse_without_sink"},
       {"sink_ignored", "lse_without_sink", "dlse_dropped", "delta_uncorrected"},
       "without the sink, the LSE, dv, and dq up to Delta are those of a backward that recomputes P without "
       "it"},
      {{"dlse_dropped", "delta_uncorrected"},
       {"dlse_dropped", "delta_uncorrected", "sink_ignored"},
       "the same dS, only dsinks differs; without the sink dS is 1 / (1 - p) times that, which is near 1 in "
       "some heads"},
      {{"causal_missing", "window_symmetric", "window_ignored"},
       {"causal_missing", "window_symmetric", "window_ignored"},
       "a window of both sides that is not applied shows every key; one longer than the rows does too"},
      {{"dsink_missing", "dsink_sign", "dsink_batch", "dsink_from_ds"},
       {"dsink_missing", "dsink_sign", "dsink_batch", "dsink_from_ds"},
       "a head has one number, which each of them may hit; a gradient of some batch entries is missing in "
       "the others"},
      {{"layout_swapped"},
       {"head_zeroed", "rows_missing", "stale"},
       "attention across the heads of a position has zeros in dq of the first head, and copies of v in its "
       "out"},
      {{"head_zeroed", "rows_missing"}, {"head_zeroed", "rows_missing"}, "a head without rows is zero"},
  };
  return kFamilies;
}

FaultExpectation expectation_of(std::string_view fault) {
  FaultExpectation expected;
  expected.cause = fault == "dq_head_lost" ? "head_zeroed"
                   : fault == "dq_scaled"  ? std::string(kUnknownCause)
                                           : std::string(fault);
  expected.in_one_head = fault == "dq_head_lost" || fault == "head_zeroed" || fault == "stale";
  expected.loses_dsinks = fault == "sink_ignored" || fault == "sink_zero_added" || fault == "layout_swapped";
  expected.family = {expected.cause};
  for (const CauseFamily& family : cause_families()) {
    if (!contains(family.of, expected.cause)) continue;
    for (const std::string_view cause : family.with) {
      if (std::find(expected.family.begin(), expected.family.end(), cause) == expected.family.end())
        expected.family.emplace_back(cause);
    }
  }
  return expected;
}

}  // namespace sinkscope
