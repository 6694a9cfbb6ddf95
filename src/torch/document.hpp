// SPDX-License-Identifier: Apache-2.0
// What the libtorch adapters share: a case's tensors as ATen ones, cut into pieces in which every row sees a
// key.
#pragma once

#include <ATen/ATen.h>
#include <functional>
#include <optional>
#include <string>

#include "src/inputs/path.hpp"

namespace sinkscope::torch_paths {

// One batch entry's or one document's rows and keys. Leading rows that see no key are left out: their results
// are known.
struct Piece {
  std::int64_t first_row, rows, first_key, keys;  // within the case's sq and sk
};

// The case in ATen's terms, in the memory layout that it asks for.
struct TorchCase {
  explicit TorchCase(const Case& source);

  const Case& c;
  const AttentionShape& s;
  at::Tensor q, k, v, dout;  // [b, h, s, d]; dout undefined without a backward
  at::Tensor sinks;          // [hq] fp32; undefined without sinks
  at::Tensor dlse;           // [b, hq, sq] fp32, or undefined
  bool backward;

  std::vector<Piece> pieces() const;
  // The additive mask of a piece [rows, keys] in `dtype` with `hidden` where nothing is seen; undefined where
  // plain top-left causality (or nothing) says it all.
  at::Tensor mask(const Piece& piece, at::ScalarType dtype, double hidden) const;
  bool plain_causal(const Piece& piece) const;
};

// Empty results of a case, to be filled piece by piece.
struct TorchOutputs {
  explicit TorchOutputs(const TorchCase& t);
  at::Tensor out, lse, dq, dk, dv, dsinks;  // lse [b, hq, sq] fp32
  // As the case's tensors, those that `grads` asks for.
  Outputs finish(const Case& c, bool with_lse, bool with_dsinks) const;
};

at::ScalarType scalar_type(DType dtype);
Tensor from_torch(const at::Tensor& tensor, DType dtype);

using Run = std::function<Outputs(const TorchCase&)>;

// A path around a function on a TorchCase: sets the threads, names the backend.
Path make_path(const char* name, const char* backend,
               std::function<std::optional<std::string>(const Case&)> unsupported, Run run);

std::vector<Path> flash_paths();
std::vector<Path> eager_paths();
double seconds_of_float64_eager(const Case& c, int threads);

}  // namespace sinkscope::torch_paths
