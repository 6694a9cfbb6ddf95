// SPDX-License-Identifier: Apache-2.0
// ATen's flash attention, alone and with a sink put in from outside.
#include <ATen/core/grad_mode.h>
#include <limits>
#include <memory>

#include "src/torch/flash_call.hpp"

namespace sinkscope::torch_paths {
namespace {

enum class Sink {
  kIgnored,
  // The sink put in exactly: O' = O sigmoid(lse - s), lse' = logaddexp(lse, s). The backward recomputes P =
  // exp(S - lse') and Delta = dO.O', so it is right for dq, dk and dv; dsink = -sum p dO.O'. O' is rounded
  // twice, by the op and here.
  kExact,
  // O sigmoid(lse - s) differentiated by autograd, whose flash backward has no input for the gradient of lse
  // and drops it: out, dv and dsinks are right, dq and dk are not.
  kRescaled,
};

struct Forward {
  FlashCall::Forward op;
  at::Tensor kept;      // [b, hq, rows]: the share of the softmax that the sink leaves to the keys
  at::Tensor out, lse;  // with the sink
};

struct Backward {
  FlashCall::Backward op;
  at::Tensor dsinks;  // [hq], or undefined
};

// A case with what its forward and backward leave behind.
class FlashCase {
 public:
  FlashCase(TorchCase t, Sink sink) : t_(std::move(t)), sink_(t_.sinks.defined() ? sink : Sink::kIgnored) {
    if (t_.sinks.defined()) sinks_ = t_.sinks.view({1, -1, 1});
    calls_ = flash_calls(t_);
  }

  void forward() {
    forwards_.clear();
    for (const FlashCall& call : calls_) forwards_.push_back(forward(call));
  }

  void backward() {
    ran_backward_ = true;
    backwards_.clear();
    for (std::size_t i = 0; i < calls_.size(); ++i) backwards_.push_back(backward(calls_[i], forwards_[i]));
  }

  Outputs outputs() const;
  bool has_backward() const { return t_.backward; }

 private:
  Forward forward(const FlashCall& call) const;
  Backward backward(const FlashCall& call, const Forward& forward) const;
  at::Tensor dlse_of_empty_rows() const;

  TorchCase t_;
  Sink sink_;
  at::Tensor sinks_;  // [1, hq, 1]
  std::vector<FlashCall> calls_;
  std::vector<Forward> forwards_;
  std::vector<Backward> backwards_;
  bool ran_backward_ = false;
};

Forward FlashCase::forward(const FlashCall& call) const {
  Forward f;
  f.op = call.forward();
  if (sink_ == Sink::kIgnored) {
    f.out = f.op.out;
    f.lse = f.op.lse;
    return f;
  }
  f.kept = at::sigmoid(f.op.lse - sinks_);
  // A sink of -inf leaves nothing to divide where no key is seen either.
  if (call.empty_rows().defined()) f.kept.masked_fill_(call.empty_rows(), 0);
  f.out = (f.op.out.to(at::kFloat) * f.kept.unsqueeze(-1)).to(f.op.out.scalar_type());
  f.lse = at::logaddexp(f.op.lse, sinks_);
  return f;
}

Backward FlashCase::backward(const FlashCall& call, const Forward& f) const {
  if (sink_ == Sink::kIgnored) return {call.backward(call.dout(), f.out, f.lse, f.op), {}};
  const at::Tensor dout = call.dout().to(at::kFloat);
  if (sink_ == Sink::kExact) {
    const at::Tensor delta = (dout * f.out.to(at::kFloat)).sum(-1);
    at::Tensor terms = at::sigmoid(sinks_ - f.op.lse) * delta;
    if (call.empty_rows().defined()) terms.masked_fill_(call.empty_rows(), 0);  // out is 0 there
    return {call.backward(call.dout(), f.out, f.lse, f.op), -terms.sum(at::IntArrayRef{0, 2})};
  }
  const at::Tensor dkept = (dout * f.op.out.to(at::kFloat)).sum(-1);
  at::Tensor terms = -f.kept * (1 - f.kept) * dkept;
  if (t_.dlse.defined()) terms = terms + (1 - f.kept) * call.rows(t_.dlse);
  const at::Tensor scaled = (dout * f.kept.unsqueeze(-1)).to(f.op.out.scalar_type());
  return {call.backward(scaled, f.op.out, f.op.lse, f.op), terms.sum(at::IntArrayRef{0, 2})};
}

// Rows without keys hand the whole gradient of the LSE to the sink: that of the rows in no call, [hq].
at::Tensor FlashCase::dlse_of_empty_rows() const {
  at::Tensor left = at::ones({1, 1, t_.s.sq}, t_.dlse.options());
  for (const FlashCall& call : calls_) call.rows(left).zero_();
  return (t_.dlse * left).sum(at::IntArrayRef{0, 2});
}

Outputs FlashCase::outputs() const {
  TorchOutputs outputs(t_);
  if (sink_ == Sink::kIgnored) outputs.lse.fill_(-std::numeric_limits<float>::infinity());
  for (std::size_t i = 0; i < calls_.size(); ++i) {
    const FlashCall& call = calls_[i];
    call.rows(outputs.out).copy_(forwards_[i].out);
    call.rows(outputs.lse).copy_(forwards_[i].lse);
    if (!ran_backward_) continue;
    call.rows(outputs.dq).copy_(backwards_[i].op.dq);
    call.keys(outputs.dk).copy_(backwards_[i].op.dk);
    call.keys(outputs.dv).copy_(backwards_[i].op.dv);
    if (backwards_[i].dsinks.defined()) outputs.dsinks += backwards_[i].dsinks;
  }
  if (!ran_backward_) return outputs.finish(t_, Results{.lse = true, .gradients = false});
  if (t_.dlse.defined() && sink_ == Sink::kRescaled) outputs.dsinks += dlse_of_empty_rows();
  return outputs.finish(t_, Results{.lse = true, .dsinks = sink_ != Sink::kIgnored});
}

Outputs run(const TorchCase& t, Sink sink) {
  std::optional<DeterministicFlash> deterministic;
  if (t.q.is_cuda()) deterministic.emplace();
  FlashCase flash(t, sink);
  flash.forward();
  if (flash.has_backward()) flash.backward();
  return flash.outputs();
}

// In the memory layout that the GPU's op computes in, so that no copies are timed, and with dq summed in any
// order, which is how people run it.
PreparedPath prepare(const Case& c, Sink sink) {
  const auto flash = std::make_shared<FlashCase>(TorchCase(c, at::kCUDA, Layout::kBshd), sink);
  PreparedPath prepared;
  prepared.forward = [flash] {
    const at::NoGradGuard no_grad;
    flash->forward();
  };
  if (flash->has_backward()) {
    prepared.backward = [flash] {
      const at::NoGradGuard no_grad;
      flash->backward();
    };
  }
  prepared.outputs = [flash] {
    const at::NoGradGuard no_grad;
    return flash->outputs();
  };
  return prepared;
}

std::optional<std::string> unsupported(const Case& c, at::DeviceType device, Sink sink) {
  if (sink == Sink::kExact && c.dlse.given())
    return "the flash op's backward has no input for the gradient of the LSE";
  return flash_unsupported(c, device);
}

Path flash_path(const char* name, Sink sink) {
  return make_path({name, "aten::_scaled_dot_product_flash_attention_for_cpu",
                    "aten::_flash_attention_forward",
                    [sink](const Case& c, at::DeviceType device) { return unsupported(c, device, sink); },
                    [sink](const TorchCase& t) { return run(t, sink); },
                    [sink](const Case& c) { return prepare(c, sink); }});
}

}  // namespace

std::vector<Path> flash_paths() {
  return {flash_path("flash_attention_2", Sink::kIgnored), flash_path("flash_attention_2_sink", Sink::kExact),
          flash_path("flash_attention_2_rescaled", Sink::kRescaled)};
}

}  // namespace sinkscope::torch_paths
