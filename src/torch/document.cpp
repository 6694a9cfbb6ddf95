// SPDX-License-Identifier: Apache-2.0
#include "src/torch/document.hpp"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <cstring>
#include <limits>
#include <thread>
#include <torch/headeronly/version.h>

#include "src/torch/cuda.hpp"
#include "src/torch/module.hpp"

namespace sinkscope::torch_paths {
namespace {

// A view of a tensor's bytes, in the memory layout that the problem asks for.
at::Tensor to_torch(const Tensor& tensor, Layout layout) {
  if (!tensor.given()) return {};
  // from_blob wants a writable pointer; nothing writes to inputs.
  auto* const data = const_cast<std::byte*>(tensor.data());
  const at::Tensor view =
      at::from_blob(data, tensor.shape(), at::TensorOptions().dtype(scalar_type(tensor.dtype())));
  if (layout == Layout::kBshd && tensor.shape().size() == 4)
    return view.transpose(1, 2).contiguous().transpose(1, 2);
  return view;
}

}  // namespace

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return at::kBFloat16;
    case DType::kFp16:
      return at::kHalf;
    case DType::kFp32:
      return at::kFloat;
    case DType::kFp64:
      return at::kDouble;
    case DType::kInt32:
      return at::kInt;
    case DType::kInt64:
      return at::kLong;
  }
  return at::kFloat;
}

Tensor from_torch(const at::Tensor& tensor, DType dtype) {
  const at::Tensor contiguous = tensor.to(scalar_type(dtype)).contiguous();
  Tensor result(dtype, contiguous.sizes().vec());
  std::memcpy(result.data(), contiguous.const_data_ptr(), result.bytes());
  return result;
}

TorchCase::TorchCase(const Case& source)
    : c(source),
      s(source.problem.shape),
      q(to_torch(c.q, c.problem.layout)),
      k(to_torch(c.k, c.problem.layout)),
      v(to_torch(c.v, c.problem.layout)),
      dout(to_torch(c.dout, c.problem.layout)),
      dlse(to_torch(c.dlse, Layout::kBhsd)),
      backward(c.dout.given() && c.problem.grads.any()) {
  if (c.sinks.given()) sinks = to_torch(c.sinks, Layout::kBhsd).to(at::kFloat);
}

std::vector<Piece> TorchCase::pieces() const {
  std::vector<std::int64_t> cu_q = s.cu_q(), cu_k = s.cu_k();
  if (cu_q.empty()) {
    cu_q = {0, s.sq};
    cu_k = {0, s.sk};
  }
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i + 1 < cu_q.size(); ++i) {
    Piece piece{cu_q[i], cu_q[i + 1] - cu_q[i], cu_k[i], cu_k[i + 1] - cu_k[i]};
    const std::int64_t empty = piece.keys == 0 ? piece.rows
                               : s.causal      ? std::max<std::int64_t>(0, piece.rows - piece.keys)
                                               : 0;
    piece.first_row += empty;
    piece.rows -= empty;
    if (piece.rows > 0) pieces.push_back(piece);
  }
  return pieces;
}

bool TorchCase::plain_causal(const Piece& piece) const {
  return s.causal && piece.rows == piece.keys && (s.window == 0 || s.window >= piece.keys);
}

at::Tensor TorchCase::mask(const Piece& piece, at::ScalarType dtype, double hidden) const {
  if (!s.causal) return {};
  const at::Tensor rows = at::arange(piece.rows).unsqueeze(1) + (piece.keys - piece.rows);
  const at::Tensor keys = at::arange(piece.keys).unsqueeze(0);
  at::Tensor unseen = keys > rows;
  if (s.window > 0) unseen = unseen.logical_or(rows - keys >= s.window);
  return at::zeros({piece.rows, piece.keys}, dtype).masked_fill(unseen, hidden);
}

TorchOutputs::TorchOutputs(const TorchCase& t)
    : out(at::zeros(t.q.sizes(), t.q.options())), lse(at::empty({t.s.b, t.s.hq, t.s.sq}, at::kFloat)) {
  // A row without keys has the sink's own LSE.
  lse.fill_(-std::numeric_limits<float>::infinity());
  if (t.sinks.defined()) lse.copy_(t.sinks.view({1, -1, 1}).expand_as(lse));
  if (!t.backward) return;
  dq = at::zeros(t.q.sizes(), t.q.options());
  dk = at::zeros(t.k.sizes(), t.k.options());
  dv = at::zeros(t.v.sizes(), t.v.options());
  dsinks = at::zeros({t.s.hq}, at::kFloat);
}

Outputs TorchOutputs::finish(const Case& c, bool with_lse, bool with_dsinks) const {
  const Grads& grads = c.problem.grads;
  const DType dtype = c.problem.shape.dtype;
  Outputs outputs;
  outputs.out = from_torch(out, dtype);
  if (with_lse) outputs.lse = from_torch(lse, DType::kFp32);
  if (!dq.defined()) return outputs;
  if (grads.q) outputs.dq = from_torch(dq, dtype);
  if (grads.k) outputs.dk = from_torch(dk, dtype);
  if (grads.v) outputs.dv = from_torch(dv, dtype);
  if (grads.s && with_dsinks && c.sinks.given()) {
    outputs.dsinks = from_torch(dsinks, dsinks.scalar_type() == at::kFloat ? DType::kFp32 : dtype);
  }
  return outputs;
}

Path make_path(const char* name, const char* backend,
               std::function<std::optional<std::string>(const Case&)> unsupported, Run run) {
  Path path;
  path.name = name;
  for (const TorchPathName& known : kTorchPathNames) {
    if (path.name == known.name) path.summary = known.summary;
  }
  path.backends = "libtorch (cpu)";
  path.unsupported = std::move(unsupported);
  path.run = [backend, run = std::move(run)](const Case& c, const PathOptions& options) {
    const int hardware = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    at::set_num_threads(options.threads > 0 ? options.threads : hardware);
    const at::NoGradGuard no_grad;
    return PathRun{run(TorchCase(c)), backend};
  };
  return path;
}

}  // namespace sinkscope::torch_paths

// The module's one entry point.
extern "C" __attribute__((visibility("default"))) void sinkscope_fill_torch_module(
    sinkscope::TorchModule* module) {
  using namespace sinkscope::torch_paths;
  module->paths = flash_paths();
  for (sinkscope::Path& path : eager_paths()) module->paths.push_back(std::move(path));
  module->version = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR) + "." +
                    std::to_string(TORCH_VERSION_PATCH);
  module->seconds_of_float64_eager = seconds_of_float64_eager;
  module->cuda_unavailable = cuda_unavailable();
}
