// SPDX-License-Identifier: Apache-2.0
// The truth of a case: the double-precision reference run on what the paths saw.
#pragma once

#include <vector>

#include "reference/attention.hpp"
#include "src/inputs/case.hpp"

namespace sinkscope {

using Truth = reference::Result;

// Widens the case's inputs and runs the Eigen reference; sigma for the case's format.
Truth compute_truth(const Case& c, int threads = 0);

// One output of the truth, and its sigma, by name.
const std::vector<double>& values_of(const reference::Tensors& tensors, TensorName name);

}  // namespace sinkscope
