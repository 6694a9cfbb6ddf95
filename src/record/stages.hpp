// SPDX-License-Identifier: Apache-2.0
// The explain/stages and explain/bias groups of a record: where the error of a right path comes from.
#pragma once

#include <hdf5.h>

#include "src/record/record.hpp"

namespace sinkscope {

// One dataset per column; one row per stage of a head, its remainder last, and one per source of a bias. No group where
// there is nothing.
void write_stages(hid_t explain, const CaseResult& result);

}  // namespace sinkscope
