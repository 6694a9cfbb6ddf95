// SPDX-License-Identifier: Apache-2.0
// LSE and Delta of all rows of a head with roundings switched on.
#pragma once

#include "src/explain/rounded_head.hpp"

namespace sinkscope {

// Works out whole rows where the roundings ask for it.
RowScalars row_scalars(const HeadData& head, const Roundings& r);

// The head's gradient of its sink.
double rounded_dsink(const HeadData& head, const RowScalars& scalars);

}  // namespace sinkscope
