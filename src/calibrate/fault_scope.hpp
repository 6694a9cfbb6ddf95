// SPDX-License-Identifier: Apache-2.0
// Where a fault was planted, and whether findings say so.
#pragma once

#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "src/calibrate/fault_trial.hpp"

namespace sinkscope {

// z_rms or z_max over the bounds, NaN, or elements of another class.
bool is_visible(const HeadMetrics& head, const VisibleBounds& bounds);

using HeadOfTensor =
    std::tuple<TensorName, std::int64_t, std::int64_t>;  // batch, head (of keys in dk and dv)

struct PlantedScope {
  AttentionShape shape;
  bool everywhere = false;  // planted in every head
  struct Rows {
    std::int64_t first, end;  // of the head, from the first to the last that differs from the healthy path's
    std::set<std::int64_t> documents;
  };
  std::map<HeadOfTensor, Rows> changed;
  std::map<HeadOfTensor, std::int64_t> visible;  // the row that is farthest off
  std::set<TensorName> missing;                  // outputs that are not there
};

PlantedScope planted_scope(const FaultCase& fault_case, const Gate& gate, const Outputs& outputs,
                           const std::vector<TensorMetrics>& metrics, bool in_one_head);

// Do the findings hold all that can be seen, and nothing that was not changed? Each head and row range that is listed
// must have something changed; "all heads" is right only of a fault that was planted in all.
bool is_scope_right(const PlantedScope& scope, const std::vector<Finding>& findings);

}  // namespace sinkscope
