// SPDX-License-Identifier: Apache-2.0
// libtorch's GPU half, which the module does not link: it is loaded where a GPU is there.
#pragma once

#include <string>

namespace sinkscope::torch_paths {

// Loads libtorch_cuda once. Why libtorch has no GPU here, or empty.
const std::string& cuda_unavailable();

}  // namespace sinkscope::torch_paths
