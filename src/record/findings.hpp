// SPDX-License-Identifier: Apache-2.0
// The explain/ group of a problem in a record.
#pragma once

#include <hdf5.h>

#include "src/record/record.hpp"

namespace sinkscope {

// One dataset per column, one row per finding, in the order of the paths; no group where nothing was explained.
void write_findings(hid_t problem, const CaseResult& result);

}  // namespace sinkscope
