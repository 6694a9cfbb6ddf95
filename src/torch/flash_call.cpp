// SPDX-License-Identifier: Apache-2.0
#include "src/torch/flash_call.hpp"

#include <ATen/Context.h>
#include <algorithm>
#include <limits>

#include "src/torch/cuda.hpp"

namespace sinkscope::torch_paths {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMostMaskBytes = 4.0 * (1ULL << 30);

std::int64_t largest_step(const std::vector<std::int64_t>& offsets) {
  std::int64_t most = 0;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) most = std::max(most, offsets[i + 1] - offsets[i]);
  return most;
}

}  // namespace

FlashCall::FlashCall(const TorchCase& t, const Piece& piece)
    : t_(t),
      piece_(piece),
      scale_(t.s.scale),
      causal_(t.s.causal),
      q_(rows(t.q)),
      k_(keys(t.k)),
      v_(keys(t.v)) {
  if (t.dout.defined()) dout_ = rows(t.dout);
  if (!q_.is_cuda()) {
    causal_ = t.plain_causal(piece);
    return;
  }
  empty_ = t.empty_rows();
  if (t.s.window > 0) window_left_ = t.s.window - 1;
  most_rows_ = t.s.sq;
  most_keys_ = t.s.sk;
  if (t.s.docs.empty()) return;
  const auto options = at::TensorOptions().dtype(at::kInt);
  cu_q_ = at::tensor(t.s.cu_q(), options).to(q_.device());
  cu_k_ = at::tensor(t.s.cu_k(), options).to(q_.device());
  // For documents of one row the op takes a short cut that breaks where others have none: never let it.
  most_rows_ = std::max<std::int64_t>(2, largest_step(t.s.cu_q()));
  most_keys_ = largest_step(t.s.cu_k());
}

// Made anew each time: a case of many documents would keep many of them.
std::optional<at::Tensor> FlashCall::mask() const {
  if (causal_) return std::nullopt;
  const at::Tensor mask = t_.mask(piece_, at::kFloat, -kInfinity);
  return mask.defined() ? std::optional(mask) : std::nullopt;
}

FlashCall::Forward FlashCall::forward() const {
  if (q_.is_cuda()) return forward_on_cuda();
  auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q_, k_, v_, 0.0, causal_, mask(), scale_);
  return {out, lse.contiguous(), {}, {}};
}

FlashCall::Backward FlashCall::backward(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                                        const Forward& forward) const {
  if (q_.is_cuda()) return backward_on_cuda(dout, out, lse, forward);
  // The op reads the LSE as its own forward lays it out: [b, rows, hq] transposed.
  const at::Tensor lse_as_made = lse.transpose(1, 2).contiguous().transpose(1, 2);
  auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      dout, q_, k_, v_, out, lse_as_made, 0.0, causal_, mask(), scale_);
  return {dq, dk, dv};
}

// The GPU's op takes [b, rows, h, d], or [rows of all documents, h, d].
at::Tensor FlashCall::to_op(const at::Tensor& tensor) const {
  const at::Tensor rows_first = tensor.transpose(1, 2);
  return cu_q_.defined() ? rows_first.squeeze(0) : rows_first;
}

at::Tensor FlashCall::from_op(const at::Tensor& tensor) const {
  return (cu_q_.defined() ? tensor.unsqueeze(0) : tensor).transpose(1, 2);
}

FlashCall::Forward FlashCall::forward_on_cuda() const {
  const auto cu = [](const at::Tensor& offsets) {
    return offsets.defined() ? std::optional(offsets) : std::nullopt;
  };
  auto [out, lse, rng_state, unused, debug_mask] = at::_flash_attention_forward(
      to_op(q_), to_op(k_), to_op(v_), cu(cu_q_), cu(cu_k_), most_rows_, most_keys_, 0.0, causal_, false,
      std::optional(scale_), window_left_, causal_ ? 0 : -1);
  if (cu_q_.defined()) lse = lse.unsqueeze(0);  // [hq, rows] with documents
  // The op marks rows without keys by +inf, so that its backward's exp(s - lse) is 0 there.
  if (empty_.defined()) lse.masked_fill_(empty_, -kInfinity);
  return {from_op(out), lse, rng_state, unused};
}

FlashCall::Backward FlashCall::backward_on_cuda(const at::Tensor& dout, const at::Tensor& out,
                                                const at::Tensor& lse, const Forward& forward) const {
  at::Tensor marked = empty_.defined() ? lse.masked_fill(empty_, kInfinity) : lse.contiguous();
  if (cu_q_.defined()) marked = marked.squeeze(0);
  auto [dq, dk, dv] = at::_flash_attention_backward(
      to_op(dout), to_op(q_), to_op(k_), to_op(v_), to_op(out), marked, cu_q_, cu_k_, most_rows_, most_keys_,
      0.0, causal_, forward.rng_state, forward.unused, std::optional(scale_), window_left_, causal_ ? 0 : -1);
  return {from_op(dq), from_op(dk), from_op(dv)};
}

std::vector<FlashCall> flash_calls(const TorchCase& t) {
  std::vector<FlashCall> calls;
  const std::vector<Piece> pieces = t.pieces();
  if (t.q.is_cuda()) {
    if (!pieces.empty()) calls.emplace_back(t, Piece{0, t.s.sq, 0, t.s.sk});
    return calls;
  }
  for (const Piece& piece : pieces) calls.emplace_back(t, piece);
  return calls;
}

namespace {

std::optional<std::string> unsupported_on_cuda(const AttentionShape& s) {
  if (s.dtype != DType::kBf16 && s.dtype != DType::kFp16)
    return "flash attention 2 takes bf16 and fp16 on a GPU, saw fp32";
  if (s.d % 8 != 0 || s.d > 256)
    return "flash attention 2 takes head dims that are multiples of 8 up to 256 on a GPU, saw " +
           std::to_string(s.d);
  if (s.scale <= 0)  // it hides logits before it scales them: -inf times a negative number
    return "flash attention 2 takes a scale over 0 on a GPU, saw " + std::to_string(s.scale);
  if (cuda_device().capability < 80)
    return "flash attention 2 needs compute capability 8.0 or later, saw " +
           std::to_string(cuda_device().capability / 10) + "." +
           std::to_string(cuda_device().capability % 10);
  return std::nullopt;
}

std::optional<std::string> mask_too_large(const AttentionShape& s) {
  double bytes = 0;
  for (const auto& [rows, keys] : s.documents()) {
    const bool needs_mask = s.causal && (s.window > 0 || rows != keys);
    if (needs_mask) bytes = std::max(bytes, 4.0 * static_cast<double>(rows) * static_cast<double>(keys));
  }
  if (bytes <= kMostMaskBytes) return std::nullopt;
  return "needs a mask of " + std::to_string(static_cast<int>(bytes / (1 << 30))) +
         " GiB for the window, more than 4 GiB";
}

}  // namespace

std::optional<std::string> flash_unsupported(const Case& c, at::DeviceType device) {
  return device == at::kCUDA ? unsupported_on_cuda(c.problem.shape) : mask_too_large(c.problem.shape);
}

DeterministicFlash::DeterministicFlash()
    : before_(at::globalContext().deterministicAlgorithms()),
      warn_only_before_(at::globalContext().deterministicAlgorithmsWarnOnly()) {
  at::globalContext().setDeterministicAlgorithms(true, false);
}

DeterministicFlash::~DeterministicFlash() {
  at::globalContext().setDeterministicAlgorithms(before_, warn_only_before_);
}

}  // namespace sinkscope::torch_paths
