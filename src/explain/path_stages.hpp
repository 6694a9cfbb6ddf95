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
  State& state;
  std::vector<std::size_t> unclear;  // cells that fail and no cause fits
  std::set<TensorHead> mistaken;     // what a mistake reaches, whether that fails or not
};

// Adds what a mistake reaches: all of a head where it is in the forward, what comes after Delta where it is there.
void add_mistake(FailingPath& failing, const Accepted& accepted);

// The stages of what no mistake reaches, and of those of `unclear` of which they leave next to nothing, or little and
// that within the gate's limit; the others stay in `unclear`. `explained` gets the stages of the former alone.
std::vector<HeadStages> stages_of_failing(StagesOf path, FailingPath& failing,
                                          std::vector<HeadStages>& explained);

}  // namespace sinkscope
