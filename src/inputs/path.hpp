// SPDX-License-Identifier: Apache-2.0
// A path: one way of computing attention, from a case to its outputs, that is judged or observed.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "src/inputs/case.hpp"

namespace sinkscope {

struct PathOptions {
  int threads = 0;        // 0: all hardware threads
  bool cpu_only = false;  // never a GPU, even where there is one
};

struct PathRun {
  Outputs outputs;
  std::string backend;  // what really ran: "cpu avx512", "aten::_scaled_dot_product_flash_attention_for_cpu"
};

struct Path {
  std::string name;      // as in `--paths` and in the record
  std::string summary;   // one line for `list paths`
  std::string backends;  // what it needs, for `info`: "cpu", "libtorch (cpu)"
  // Why this case cannot be computed here ("needs one document per row, saw 3"), or nothing.
  std::function<std::optional<std::string>(const Case&)> unsupported;
  // Computes the outputs that the case's `grads` ask for. Throws std::runtime_error when something breaks.
  std::function<PathRun(const Case&, const PathOptions&)> run;
};

}  // namespace sinkscope
