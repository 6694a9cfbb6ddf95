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

// A case that lies on the GPU, to be timed: each call enqueues one run on the legacy default stream and does not
// wait.
struct PreparedPath {
  std::function<void()> forward;
  std::function<void()> backward;    // from what the last forward left; null without `dout`
  std::function<Outputs()> outputs;  // what the last runs left, on the host, to be judged
  std::string backend;               // as in PathRun
};

struct Path {
  std::string name;      // as in `--paths` and in the record
  std::string summary;   // one line for `list paths`
  std::string backends;  // what it needs, for `info`: "cpu", "libtorch (cpu)"
  // Why this case cannot be computed here ("needs one document per row, saw 3"), or nothing.
  std::function<std::optional<std::string>(const Case&)> unsupported;
  // Computes the outputs that the case's `grads` ask for. Throws std::runtime_error when something breaks.
  std::function<PathRun(const Case&, const PathOptions&)> run;
  // Lays a case out on the GPU; null where the path has no GPU backend in this process.
  std::function<PreparedPath(const Case&)> prepare;
};

// Where paths that have more than one backend are to run: SINKSCOPE_DEVICE is cpu, cuda, or not set (the GPU
// runs what it can, the CPU the rest). Throws InputError for any other value.
enum class WantedDevice { kEither, kCpu, kCuda };
WantedDevice wanted_device();

}  // namespace sinkscope
