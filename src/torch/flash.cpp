// SPDX-License-Identifier: Apache-2.0
// ATen's flash attention on the CPU, alone and with a sink put in from outside.
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <algorithm>
#include <limits>

#include "src/torch/document.hpp"

namespace sinkscope::torch_paths {
namespace {

constexpr const char* kBackend = "cpu aten::_scaled_dot_product_flash_attention_for_cpu";
constexpr double kMostMaskBytes = 4.0 * (1ULL << 30);

// One piece of a case as the flash op takes it.
class FlashPiece {
 public:
  FlashPiece(const TorchCase& t, const Piece& piece) : t_(t), piece_(piece), causal_(t.plain_causal(piece)) {
    q_ = rows(t.q);
    k_ = keys(t.k);
    v_ = keys(t.v);
    if (t.dout.defined()) dout_ = rows(t.dout);
    if (!causal_) {
      const at::Tensor mask = t.mask(piece, at::kFloat, -std::numeric_limits<double>::infinity());
      if (mask.defined()) mask_ = mask;
    }
  }

  at::Tensor rows(const at::Tensor& tensor) const { return tensor.narrow(2, piece_.first_row, piece_.rows); }
  at::Tensor keys(const at::Tensor& tensor) const { return tensor.narrow(2, piece_.first_key, piece_.keys); }

  // out [b, hq, rows, d] and the LSE [b, hq, rows], both without a sink.
  std::pair<at::Tensor, at::Tensor> forward() const {
    auto [out, lse] =
        at::_scaled_dot_product_flash_attention_for_cpu(q_, k_, v_, 0.0, causal_, mask_, t_.s.scale);
    return {out, lse.contiguous()};
  }

  void backward(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                TorchOutputs& outputs) const {
    // The op reads the LSE as its own forward lays it out: [b, rows, hq] transposed.
    const at::Tensor lse_as_made = lse.transpose(1, 2).contiguous().transpose(1, 2);
    auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        dout, q_, k_, v_, out, lse_as_made, 0.0, causal_, mask_, t_.s.scale);
    rows(outputs.dq).copy_(dq);
    keys(outputs.dk).copy_(dk);
    keys(outputs.dv).copy_(dv);
  }

  const at::Tensor& dout() const { return dout_; }
  at::Tensor sinks() const { return t_.sinks.view({1, -1, 1}); }

 private:
  const TorchCase& t_;
  Piece piece_;
  bool causal_;
  at::Tensor q_, k_, v_, dout_;
  std::optional<at::Tensor> mask_;
};

Outputs plain(const TorchCase& t) {
  TorchOutputs outputs(t);
  outputs.lse.fill_(-std::numeric_limits<float>::infinity());
  for (const Piece& piece : t.pieces()) {
    const FlashPiece flash(t, piece);
    const auto [out, lse] = flash.forward();
    flash.rows(outputs.out).copy_(out);
    flash.rows(outputs.lse).copy_(lse);
    if (t.backward) flash.backward(flash.dout(), out, lse, outputs);
  }
  return outputs.finish(t.c, true, false);
}

// The sink put in exactly: O' = O sigmoid(lse - s), lse' = logaddexp(lse, s). The backward recomputes P =
// exp(S - lse') and Delta = dO.O', so it is right for dq, dk and dv; dsink = -sum p dO.O'. O' is rounded
// twice, by the op and here.
Outputs with_sink(const TorchCase& t) {
  if (!t.sinks.defined()) return plain(t);
  TorchOutputs outputs(t);
  for (const Piece& piece : t.pieces()) {
    const FlashPiece flash(t, piece);
    const auto [out0, lse0] = flash.forward();
    const at::Tensor kept = at::sigmoid(lse0 - flash.sinks());
    const at::Tensor out = (out0.to(at::kFloat) * kept.unsqueeze(-1)).to(out0.scalar_type());
    const at::Tensor lse = at::logaddexp(lse0, flash.sinks());
    flash.rows(outputs.out).copy_(out);
    flash.rows(outputs.lse).copy_(lse);
    if (!t.backward) continue;
    flash.backward(flash.dout(), out, lse, outputs);
    const at::Tensor delta = (flash.dout().to(at::kFloat) * out.to(at::kFloat)).sum(-1);
    outputs.dsinks -= (at::sigmoid(flash.sinks() - lse0) * delta).sum(at::IntArrayRef{0, 2});
  }
  return outputs.finish(t.c, true, true);
}

// O sigmoid(lse - s) differentiated by autograd, whose flash backward has no input for the gradient of lse
// and drops it: out, dv and dsinks are right, dq and dk are not.
Outputs rescaled(const TorchCase& t) {
  if (!t.sinks.defined()) return plain(t);
  TorchOutputs outputs(t);
  for (const Piece& piece : t.pieces()) {
    const FlashPiece flash(t, piece);
    const auto [out0, lse0] = flash.forward();
    const at::Tensor kept = at::sigmoid(lse0 - flash.sinks());
    flash.rows(outputs.out).copy_((out0.to(at::kFloat) * kept.unsqueeze(-1)).to(out0.scalar_type()));
    flash.rows(outputs.lse).copy_(at::logaddexp(lse0, flash.sinks()));
    if (!t.backward) continue;
    const at::Tensor dout = flash.dout().to(at::kFloat);
    flash.backward((dout * kept.unsqueeze(-1)).to(out0.scalar_type()), out0, lse0, outputs);
    const at::Tensor dkept = (dout * out0.to(at::kFloat)).sum(-1);
    at::Tensor terms = -kept * (1 - kept) * dkept;
    if (t.dlse.defined()) terms = terms + (1 - kept) * flash.rows(t.dlse);
    outputs.dsinks += terms.sum(at::IntArrayRef{0, 2});
  }
  // Rows without keys hand the whole gradient of the LSE to the sink.
  if (t.backward && t.dlse.defined()) {
    at::Tensor empty = at::ones({t.s.sq}, at::kFloat);
    for (const Piece& piece : t.pieces()) empty.narrow(0, piece.first_row, piece.rows).zero_();
    outputs.dsinks += (t.dlse * empty).sum(at::IntArrayRef{0, 2});
  }
  return outputs.finish(t.c, true, true);
}

std::optional<std::string> mask_too_large(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  const std::vector<std::int64_t> rows = s.docs.empty() ? std::vector{s.sq} : s.docs;
  const std::vector<std::int64_t> keys = s.docs.empty()     ? std::vector{s.sk}
                                         : s.docs_k.empty() ? s.docs
                                                            : s.docs_k;
  double bytes = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const bool needs_mask = s.causal && (s.window > 0 || rows[i] != keys[i]);
    if (needs_mask)
      bytes = std::max(bytes, 4.0 * static_cast<double>(rows[i]) * static_cast<double>(keys[i]));
  }
  if (bytes <= kMostMaskBytes) return std::nullopt;
  return "needs a mask of " + std::to_string(static_cast<int>(bytes / (1 << 30))) +
         " GiB for the window, more than 4 GiB";
}

}  // namespace

std::vector<Path> flash_paths() {
  const auto without_dlse = [](const Case& c) -> std::optional<std::string> {
    if (c.dlse.given()) return "the flash op's backward has no input for the gradient of the LSE";
    return mask_too_large(c);
  };
  return {make_path("flash_attention_2", kBackend, mask_too_large, plain),
          make_path("flash_attention_2_sink", kBackend, without_dlse, with_sink),
          make_path("flash_attention_2_rescaled", kBackend, mask_too_large, rescaled)};
}

}  // namespace sinkscope::torch_paths
