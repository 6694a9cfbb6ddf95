// SPDX-License-Identifier: Apache-2.0
// The blocks of a model's parameters, one by one or as the record keeps them.
#pragma once

#include <vector>

#include "src/record/run_record.hpp"
#include "src/spike/explained.hpp"

namespace sinkscope {

// Every block of a model of this shape: q, k, v, sink and other of each layer, then outside.
std::vector<BlockName> all_blocks(const RunShape& shape);

// Numbers in the order of all_blocks(), in the places that the record has for them, and back. Throw std::logic_error
// where the counts differ.
BlockValues to_arrays(const std::vector<double>& values, const RunShape& shape);
std::vector<double> to_list(const BlockValues& values, const RunShape& shape);

double sum(const BlockValues& values);

}  // namespace sinkscope
