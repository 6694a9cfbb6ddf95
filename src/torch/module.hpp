// SPDX-License-Identifier: Apache-2.0
// The boundary to libtorch: the flash_attention_2 and eager paths live in a shared module that is loaded on
// first use, so that the command starts fast, works without libtorch, and never sees libtorch's own copies of
// other libraries. No torch header is included here.
#pragma once

#include <string>
#include <vector>

#include "src/paths/path.hpp"

namespace sinkscope {

struct TorchModule {
  std::vector<Path> paths;  // empty when it could not be loaded
  std::string version;      // "2.11.0", or empty
  std::string unavailable;  // why it could not be loaded, or empty
  // Seconds of one forward+backward of float64 eager attention through autograd (for `bench reference`); null
  // when unavailable.
  double (*time_float64_eager)(const Case& c, int threads) = nullptr;
};

// Looks in SINKSCOPE_TORCH_MODULE, beside the executable, then in ../lib/sinkscope.
const TorchModule& torch_module();

}  // namespace sinkscope
