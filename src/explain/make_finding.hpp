// SPDX-License-Identifier: Apache-2.0
// From what the search came to to findings: scopes, shares, words.
#pragma once

#include <vector>

#include "src/explain/engine.hpp"
#include "src/explain/finding.hpp"
#include "src/explain/rounding_search.hpp"

namespace sinkscope {

Finding finding_of(State& state, const Accepted& accepted);
Finding finding_of(const State& state, const RoundingFit& fit);

// What fails and no cause fits, in one finding. `in_part`: causes were found beside it.
Finding unexplained(const State& state, const std::vector<std::size_t>& cells, bool in_part);

// {none}.
Finding nothing_wrong();

// A path that was asked for dsinks and gave none: a mistake of its own, but where the sink is not used at all.
void add_missing_dsinks(State& state, std::vector<Finding>& findings);

}  // namespace sinkscope
