// SPDX-License-Identifier: Apache-2.0
#include "src/torch/document.hpp"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <limits>
#include <thread>
#include <torch/headeronly/version.h>

#include "src/core/error.hpp"
#include "src/torch/cuda.hpp"
#include "src/torch/module.hpp"
#include "src/torch/truth_cuda.hpp"

namespace sinkscope::torch_paths {
namespace {

// The tensor's bytes on `device` in a memory layout: a view where nothing must be moved.
at::Tensor to_torch(const Tensor& tensor, Layout layout, at::DeviceType device) {
  if (!tensor.given()) return {};
  const at::Tensor view = view_of(tensor).to(device);
  if (layout == Layout::kBshd && tensor.shape().size() == 4)
    return view.transpose(1, 2).contiguous().transpose(1, 2);
  return view;
}

// Why a device cannot compute a case, the machine's reasons included.
std::optional<std::string> unsupported_on(const TorchPath& path, const Case& c, at::DeviceType device) {
  if (device == at::kCUDA && !cuda_unavailable().empty()) return cuda_unavailable();
  return path.unsupported(c, device);
}

at::DeviceType choose_device(const TorchPath& path, const Case& c, bool cpu_only) {
  const WantedDevice wanted = wanted_device();
  if (cpu_only || wanted == WantedDevice::kCpu) return at::kCPU;
  if (wanted == WantedDevice::kCuda) return at::kCUDA;
  return unsupported_on(path, c, at::kCUDA) ? at::kCPU : at::kCUDA;
}

// Why no device that may be taken computes the case, or nothing.
std::optional<std::string> unsupported(const TorchPath& path, const Case& c) {
  const WantedDevice wanted = wanted_device();
  if (wanted == WantedDevice::kCuda) return unsupported_on(path, c, at::kCUDA);
  const std::optional<std::string> on_cpu = unsupported_on(path, c, at::kCPU);
  if (!on_cpu || wanted == WantedDevice::kCpu || !cuda_unavailable().empty()) return on_cpu;
  const std::optional<std::string> on_cuda = unsupported_on(path, c, at::kCUDA);
  if (!on_cuda || *on_cuda == *on_cpu) return on_cuda;
  return "on the GPU: " + *on_cuda + "; on the CPU: " + *on_cpu;
}

std::string backend_name(const TorchPath& path, at::DeviceType device) {
  if (device == at::kCPU) return std::string("cpu ") + path.on_cpu;
  return "cuda " + cuda_device().name + " " + path.on_cuda;
}

}  // namespace

TorchCase::TorchCase(const Case& source, at::DeviceType device, std::optional<Layout> layout)
    : grads(source.problem.grads),
      s(source.problem.shape),
      backward(source.dout.given() && source.problem.grads.any()) {
  const Layout chosen = layout.value_or(source.problem.layout);
  q = to_torch(source.q, chosen, device);
  k = to_torch(source.k, chosen, device);
  v = to_torch(source.v, chosen, device);
  dout = to_torch(source.dout, chosen, device);
  dlse = to_torch(source.dlse, Layout::kBhsd, device);
  if (source.sinks.given()) sinks = to_torch(source.sinks, Layout::kBhsd, device).to(at::kFloat);
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

at::Tensor TorchCase::empty_rows() const {
  at::Tensor empty = at::ones({s.sq}, at::kBool);
  for (const Piece& piece : pieces()) empty.narrow(0, piece.first_row, piece.rows).zero_();
  return empty.any().item<bool>() ? empty.to(q.device()) : at::Tensor();
}

bool TorchCase::plain_causal(const Piece& piece) const {
  return s.causal && piece.rows == piece.keys && (s.window == 0 || s.window >= piece.keys);
}

at::Tensor TorchCase::mask(const Piece& piece, at::ScalarType dtype, double hidden) const {
  if (!s.causal) return {};
  const auto on_device = at::TensorOptions().device(q.device());
  const at::Tensor rows =
      at::arange(piece.rows, on_device.dtype(at::kLong)).unsqueeze(1) + (piece.keys - piece.rows);
  const at::Tensor keys = at::arange(piece.keys, on_device.dtype(at::kLong)).unsqueeze(0);
  at::Tensor unseen = keys > rows;
  if (s.window > 0) unseen = unseen.logical_or(rows - keys >= s.window);
  return at::zeros({piece.rows, piece.keys}, on_device.dtype(dtype)).masked_fill(unseen, hidden);
}

TorchOutputs::TorchOutputs(const TorchCase& t)
    : out(at::zeros(t.q.sizes(), t.q.options())),
      lse(at::empty({t.s.b, t.s.hq, t.s.sq}, t.q.options().dtype(at::kFloat))) {
  // A row without keys has the sink's own LSE.
  lse.fill_(-std::numeric_limits<float>::infinity());
  if (t.sinks.defined()) lse.copy_(t.sinks.view({1, -1, 1}).expand_as(lse));
  if (!t.backward) return;
  dq = at::zeros(t.q.sizes(), t.q.options());
  dk = at::zeros(t.k.sizes(), t.k.options());
  dv = at::zeros(t.v.sizes(), t.v.options());
  dsinks = at::zeros({t.s.hq}, t.q.options().dtype(at::kFloat));
}

Outputs TorchOutputs::finish(const TorchCase& t, Results computed) const {
  const DType dtype = t.s.dtype;
  Outputs outputs;
  outputs.out = from_torch(out, dtype);
  if (computed.lse) outputs.lse = from_torch(lse, DType::kFp32);
  if (!t.backward || !computed.gradients) return outputs;
  if (t.grads.q) outputs.dq = from_torch(dq, dtype);
  if (t.grads.k) outputs.dk = from_torch(dk, dtype);
  if (t.grads.v) outputs.dv = from_torch(dv, dtype);
  if (t.grads.s && computed.dsinks && t.sinks.defined()) {
    outputs.dsinks = from_torch(dsinks, dsinks.scalar_type() == at::kFloat ? DType::kFp32 : dtype);
  }
  return outputs;
}

Path make_path(const TorchPath& torch) {
  Path path;
  path.name = torch.name;
  for (const TorchPathName& known : kTorchPathNames) {
    if (path.name == known.name) path.summary = known.summary;
  }
  const bool has_cuda = cuda_unavailable().empty();
  path.backends = has_cuda ? "libtorch (cuda, else cpu)" : "libtorch (cpu)";
  path.unsupported = [torch](const Case& c) { return unsupported(torch, c); };
  path.run = [torch](const Case& c, const PathOptions& options) {
    const at::DeviceType device = choose_device(torch, c, options.cpu_only);
    // `unsupported` does not know of cpu_only.
    if (const auto reason = unsupported_on(torch, c, device)) throw EnvironmentError(*reason);
    const int hardware = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    at::set_num_threads(options.threads > 0 ? options.threads : hardware);
    const at::NoGradGuard no_grad;
    return PathRun{torch.run(TorchCase(c, device)), backend_name(torch, device)};
  };
  if (!has_cuda || !torch.prepare) return path;
  path.prepare = [torch](const Case& c) {
    if (const auto reason = unsupported_on(torch, c, at::kCUDA)) throw EnvironmentError(*reason);
    const at::NoGradGuard no_grad;
    PreparedPath prepared = torch.prepare(c);
    prepared.backend = backend_name(torch, at::kCUDA);
    return prepared;
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
  module->cpu_truth = cpu_truth;
  module->cuda_unavailable = cuda_unavailable();
  if (!module->cuda_unavailable.empty()) return;
  module->cuda_truth = cuda_truth;
  module->cuda_peak_bytes = cuda_peak_bytes;
  module->cuda_gemm = cuda_gemm;
}
