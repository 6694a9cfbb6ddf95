// SPDX-License-Identifier: Apache-2.0
// The production kernel's CUDA backend, where SINKSCOPE_WITH_CUDA built it.
#pragma once

#include <optional>
#include <string>

#include "src/inputs/path.hpp"

namespace sinkscope {

bool cuda_kernel_built();

// The name of the GPU that would run it, or nothing.
std::optional<std::string> cuda_kernel_device();

// Why the GPU cannot compute this case ("no CUDA device: ..."), or nothing.
std::optional<std::string> cuda_kernel_unsupported(const Case& c);

PathRun run_cuda_kernel(const Case& c);

// All device memory is allocated here, workspaces included; outputs start as NaN bits. `outputs` also checks the bands
// around every buffer. Lives as long as any of the result's functions.
PreparedPath prepare_cuda_kernel(const Case& c);

}  // namespace sinkscope
