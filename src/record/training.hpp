// SPDX-License-Identifier: Apache-2.0
// The training/ group in explain/ of a problem in a record.
#pragma once

#include <hdf5.h>

#include "src/record/record.hpp"

namespace sinkscope {

// Groups of columns: paths/ (one row per path), heads/ (per head of a tensor), causes/ and shares/ (per share). No group
// where no path gave a gradient.
void write_training(hid_t explain, const CaseResult& result);

}  // namespace sinkscope
