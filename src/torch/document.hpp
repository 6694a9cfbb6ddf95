// SPDX-License-Identifier: Apache-2.0
// What the libtorch adapters share: a case's tensors as ATen ones on a device, cut into pieces in which every
// row sees a key, and a path around a function on them.
#pragma once

#include <ATen/ATen.h>
#include <functional>
#include <optional>
#include <string>

#include "src/inputs/path.hpp"
#include "src/torch/host_tensor.hpp"

namespace sinkscope::torch_paths {

// One batch entry's or one document's rows and keys. Leading rows that see no key are left out: their results
// are known.
struct Piece {
  std::int64_t first_row, rows, first_key, keys;  // within the case's sq and sk
};

// The case in ATen's terms, in the memory layout that it asks for or in `layout`. On the CPU its tensors are
// views of the case's, on a GPU copies.
struct TorchCase {
  explicit TorchCase(const Case& source, at::DeviceType device = at::kCPU,
                     std::optional<Layout> layout = std::nullopt);

  Grads grads;
  AttentionShape s;
  at::Tensor q, k, v, dout;  // [b, h, s, d]; dout undefined without a backward
  at::Tensor sinks;          // [hq] fp32; undefined without sinks
  at::Tensor dlse;           // [b, hq, sq] fp32, or undefined
  bool backward;

  std::vector<Piece> pieces() const;
  // Which rows see no key: [sq] booleans on the case's device, undefined where every row sees one.
  at::Tensor empty_rows() const;
  // The additive mask of a piece [rows, keys] in `dtype` with `hidden` where nothing is seen; undefined where
  // everything is.
  at::Tensor mask(const Piece& piece, at::ScalarType dtype, double hidden) const;
  bool plain_causal(const Piece& piece) const;
};

// What a path has computed; out always.
struct Results {
  bool lse = false, gradients = true, dsinks = true;  // gradients: dq, dk, dv and, with `dsinks`, dsinks
};

// Empty results of a case, to be filled piece by piece.
struct TorchOutputs {
  explicit TorchOutputs(const TorchCase& t);
  at::Tensor out, lse, dq, dk, dv, dsinks;  // lse [b, hq, sq] fp32
  // What was computed, as the case's tensors on the host, and of the gradients those that the case asks for.
  Outputs finish(const TorchCase& t, Results computed) const;
};

// What makes a path: the same function of a TorchCase on either device.
struct TorchPath {
  const char* name;
  const char* on_cpu;  // what computes it there, for the backend's name
  const char* on_cuda;
  // Why this device cannot compute the case, or nothing. Asked for a GPU only where there is one.
  std::function<std::optional<std::string>(const Case&, at::DeviceType)> unsupported;
  std::function<Outputs(const TorchCase&)> run;
  std::function<PreparedPath(const Case&)> prepare;  // on the GPU
};

// Chooses the device (PathOptions::cpu_only, SINKSCOPE_DEVICE, what supports the case), sets the threads,
// names the backend.
Path make_path(const TorchPath& path);

std::vector<Path> flash_paths();
std::vector<Path> eager_paths();
double seconds_of_float64_eager(const Case& c, int threads);

}  // namespace sinkscope::torch_paths
