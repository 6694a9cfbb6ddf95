// SPDX-License-Identifier: Apache-2.0
// What the mistakes that were found do to the squared norms and gains of the gradients.
#pragma once

#include <string>
#include <vector>

#include "src/explain/engine.hpp"
#include "src/explain/rounding_search.hpp"
#include "src/explain/training.hpp"

namespace sinkscope {

// After the search: `accepted` in its order, `rounded` for what a rounding model explains, `unclear` for cells that
// nothing does. What is left of a cell goes to what it is in; without either to rounding.
Consequences consequences_of(State& state, const std::vector<Accepted>& accepted,
                             const std::vector<RoundingFit>& rounded,
                             const std::vector<std::size_t>& unclear);

}  // namespace sinkscope
