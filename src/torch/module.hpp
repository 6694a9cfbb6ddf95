// SPDX-License-Identifier: Apache-2.0
// The boundary to libtorch: the flash_attention_2 and eager paths live in a shared module that is loaded on
// first use, so that the command starts fast, works without libtorch, and never sees libtorch's own copies of
// other libraries. No torch header is included here.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "src/inputs/path.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {

// The paths that the module brings, known without loading it.
struct TorchPathName {
  const char* name;
  const char* summary;
};
inline constexpr std::array kTorchPathNames = {
    TorchPathName{"flash_attention_2", "ATen's flash attention, which ignores the sink"},
    TorchPathName{"flash_attention_2_sink",
                  "the same made exact: the backward gets the sink-corrected out and LSE"},
    TorchPathName{"flash_attention_2_rescaled",
                  "out times sigmoid(lse - s) through autograd, which drops the gradient of the LSE"},
    TorchPathName{"eager", "transformers' GPT-OSS eager, rounding for rounding"},
    TorchPathName{"eager_fp32", "the same with the softmax in fp32"},
};

// What the module's entry point fills in.
struct TorchModule {
  std::vector<Path> paths;  // empty when it could not be loaded
  std::string version;      // "2.11.0", or empty
  std::string unavailable;  // why it could not be loaded, or empty
  // Seconds of one forward and backward of eager attention with a sink in float64 through autograd, for
  // `bench reference`; null when unavailable.
  double (*seconds_of_float64_eager)(const Case& c, int threads) = nullptr;

  // The truth of a case by double-precision products on the CPU: what `cuda_truth` computes, without a GPU.
  Truth (*cpu_truth)(const Case& c) = nullptr;

  std::string cuda_unavailable;  // why libtorch has no GPU here, or empty; the fields below need one
  // The truth of a case by double-precision products on the GPU.
  Truth (*cuda_truth)(const Case& c) = nullptr;
  std::int64_t (*cuda_peak_bytes)() = nullptr;  // the most that libtorch has reserved on the GPU so far
  // Enqueues one bf16 product of n x n matrices, 2 n^3 operations, for the machine's own matrix rate.
  std::function<void()> (*cuda_gemm)(int n) = nullptr;
};

// Looks for the module at SINKSCOPE_TORCH_MODULE, beside the executable, then in ../lib/sinkscope. Loads it
// once.
const TorchModule& torch_module();

// Has torch_module() been called? (A report names the torch version only where torch took part.)
bool torch_module_loaded();

}  // namespace sinkscope
