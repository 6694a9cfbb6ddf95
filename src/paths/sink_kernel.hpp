// SPDX-License-Identifier: Apache-2.0
// The production kernel as a path.
#pragma once

#include <string>

#include "src/inputs/path.hpp"

namespace sinkscope {

Path sink_kernel_path();

// What the kernel runs on here, per format: "bf16 amx, fp16 avx512, fp32 avx512".
std::string sink_kernel_backends();

}  // namespace sinkscope
