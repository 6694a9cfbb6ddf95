// SPDX-License-Identifier: Apache-2.0
// The production kernel as a path.
#pragma once

#include "src/inputs/path.hpp"

namespace sinkscope {

Path sink_kernel_path();

}  // namespace sinkscope
