// SPDX-License-Identifier: Apache-2.0
// What a problem asks of a machine at least, whatever the algorithm.
#pragma once

#include "src/problem/problem.hpp"

namespace sinkscope {

// Pairs of a query row and a key that it sees, over batch and query heads.
double visible_pairs(const AttentionShape& shape);

// Useful operations and least traffic of one pass. A visible pair takes 2 d operations for each product it is in: two
// forward (S, PV), five backward (S, dP, dV, dQ, dK). Traffic is every tensor of the interface once: those of
// the sink and the offsets are too small to count.
struct Work {
  double flops = 0;
  double bytes = 0;
};
Work forward_work(const Problem& problem);
Work backward_work(const Problem& problem);

}  // namespace sinkscope
