// SPDX-License-Identifier: Apache-2.0
// The module's entry point.
#include "src/lab/entry.hpp"

#include <ATen/Context.h>
#include <memory>
#include <string>
#include <utility>

#include "src/core/error.hpp"
#include "src/lab/trainer.hpp"
#include "src/torch/cuda.hpp"

namespace sinkscope::lab {

extern "C" __attribute__((visibility("default"))) Lab* sinkscope_open_lab(const LabConfig* config,
                                                                          const FindPath* find_path) {
  if (config->cuda && !torch_paths::cuda_unavailable().empty())
    throw EnvironmentError("device is cuda: " + torch_paths::cuda_unavailable());
  at::globalContext().setAllowTF32CuBLAS(config->precision == Precision::kTf32);
  return std::make_unique<Trainer>(*config, *find_path).release();
}

}  // namespace sinkscope::lab
