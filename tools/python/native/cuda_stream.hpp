// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace sinkscope_python {

// torch's current stream on a CUDA device, a cudaStream_t.
void* current_cuda_stream(std::int32_t device);

}  // namespace sinkscope_python
