// SPDX-License-Identifier: Apache-2.0
// The stages of a whole path: of which heads they can be said, and what fails by its roundings alone.
#pragma once

#include <set>
#include <vector>

#include "src/explain/engine.hpp"
#include "src/explain/stages.hpp"

namespace sinkscope {

// A path that passes: the stages of every head.
std::vector<HeadStages> stages_of_passing(StagesOf path);

// A path of which something fails.
struct FailingPath {
  const State& state;
  std::set<std::pair<std::int64_t, std::int64_t>> mistaken;  // batch, query head, where a mistake was found
  std::vector<std::size_t> unclear;                          // cells that fail and no cause fits
  bool has_mistake = false;
};

// The stages of what no mistake reaches, and of those of `unclear` of which they leave next to nothing, or little and
// that within the gate's limit; the others stay in `unclear`. `explained` gets the stages of the former alone.
std::vector<HeadStages> stages_of_failing(StagesOf path, FailingPath& failing, std::vector<HeadStages>& explained);

}  // namespace sinkscope
