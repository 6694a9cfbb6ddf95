// SPDX-License-Identifier: Apache-2.0
// The module's entry point.
#include "src/lab/entry.hpp"

#include <ATen/Context.h>
#include <memory>
#include <string>
#include <utility>

#include "src/core/error.hpp"
#include "src/lab/trainer.hpp"

namespace sinkscope::lab {

extern "C" __attribute__((visibility("default"))) Lab* sinkscope_open_lab(const LabConfig* config,
                                                                          const FindPath* find_path) {
  if (config->cuda && !at::hasCUDA()) throw EnvironmentError("device is cuda, but libtorch sees no GPU here");
  return std::make_unique<Trainer>(*config, *find_path).release();
}

}  // namespace sinkscope::lab
