// SPDX-License-Identifier: Apache-2.0
// The truth by libtorch's double-precision products, on the GPU, for problems that are too long for the CPU.
#pragma once

#include "src/inputs/case.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope::torch_paths {

// The same quantities as reference::attention, by other code. The device holds one document's keys of one
// key/value head and strips of rows by keys: 8 GiB at 131072 keys, in fp32 about 14. The bits do not differ from run
// to run. Throws EnvironmentError without a GPU or when its memory does not suffice.
Truth cuda_truth(const Case& c);

// The same computation on the CPU, slower than the reference: it needs no GPU to be tested.
Truth cpu_truth(const Case& c);

// The most bytes that libtorch has reserved on the GPU so far.
std::int64_t cuda_peak_bytes();

}  // namespace sinkscope::torch_paths
