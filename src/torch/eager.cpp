// SPDX-License-Identifier: Apache-2.0
// transformers' eager_attention_forward of GPT-OSS and its autograd, step by step, so that every intermediate
// is rounded to the case's format where transformers (5.17, on a GPU) rounds it. Documents are isolated.
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>

#include "src/core/error.hpp"
#include "src/torch/cuda.hpp"
#include "src/torch/document.hpp"

namespace sinkscope::torch_paths {
namespace {

constexpr double kScoreTensors = 6;                     // of [group, sq, sk] that live at once
constexpr double kMostScoreBytes = 4.0 * (1ULL << 30);  // on the CPU
constexpr double kMostScoreShare = 0.6;                 // of the GPU's memory

// What transformers adds where nothing is seen: the format's lowest finite number.
double mask_value(at::ScalarType dtype) {
  if (dtype == at::kHalf) return -65504.0;
  return dtype == at::kBFloat16 ? -0x1.FEp127 : -static_cast<double>(std::numeric_limits<float>::max());
}

// One key/value head of one piece with its group of query heads, [group, rows or keys, d].
struct Group {
  Piece piece;
  std::int64_t batch, kv;
  at::Tensor q, k, v, dout;
  at::Tensor mask;   // [rows, keys], or undefined
  at::Tensor sinks;  // [group], in the format, or undefined
};

// The scores' arithmetic: of the products the case's format, of the softmax the variant's.
struct Formats {
  at::ScalarType products, softmax;
};

struct Forward {
  at::Tensor out;
  // What autograd keeps for the backward: the softmax, its columns of keys in the format (the same memory
  // where the softmax is in the format), and where each row's maximum was.
  at::Tensor probabilities, p, high_at;
};

struct Backward {
  at::Tensor dq, dk, dv;  // dk, dv [keys, d]
  at::Tensor dsink_rows;  // [group, rows]: the sink's gradient before it is summed; undefined without one
};

Forward forward(const Group& g, double scale, Formats formats) {
  at::Tensor weights = at::matmul(g.q, g.k.transpose(-1, -2)) * scale;
  if (g.mask.defined()) weights = weights + g.mask;
  if (g.sinks.defined())
    weights = at::cat({weights, g.sinks.view({-1, 1, 1}).expand({-1, weights.size(1), 1})}, -1);
  const auto [high, high_at] = weights.max(-1, true);
  Forward f;
  f.probabilities = at::softmax(weights - high, -1, formats.softmax);
  f.p = f.probabilities.narrow(-1, 0, g.k.size(0)).to(formats.products);
  f.high_at = high_at;
  f.out = at::matmul(f.p, g.v);
  return f;
}

// The softmax backward on a GPU rounds P * dP to the format before it sums.
at::Tensor softmax_backward(const at::Tensor& dp, const at::Tensor& probabilities) {
  const at::ScalarType format = probabilities.scalar_type();
  if (dp.is_cuda()) return at::_softmax_backward_data(dp, probabilities, -1, format);
  const at::Tensor product = probabilities * dp;
  const at::Tensor sum = product.sum(-1, true, at::kFloat);
  return (product.to(at::kFloat) - probabilities.to(at::kFloat) * sum).to(format);
}

Backward backward(const Group& g, const Forward& f, double scale, Formats formats) {
  const std::int64_t keys = g.k.size(0);
  Backward b;
  // dv, and dk below, are summed over the group after each head's was rounded, as the backward of repeat_kv
  // does.
  b.dv = at::matmul(f.p.transpose(-1, -2), g.dout).sum(0);
  at::Tensor dp = at::matmul(g.dout, g.v.transpose(-1, -2)).to(formats.softmax);
  if (g.sinks.defined()) dp = at::constant_pad_nd(dp, {0, 1});
  at::Tensor ds = softmax_backward(dp, f.probabilities).to(formats.products);
  // The gradient of the subtracted maximum goes to where the maximum was.
  ds = ds + at::zeros_like(ds).scatter(-1, f.high_at, -ds.sum(-1, true));
  if (g.sinks.defined()) b.dsink_rows = ds.select(-1, keys);
  const at::Tensor dweights = ds.narrow(-1, 0, keys) * scale;
  b.dq = at::matmul(dweights, g.k);
  b.dk = at::matmul(dweights.transpose(-1, -2), g.q).sum(0);
  return b;
}

// A case to be computed group by group, and its results.
class EagerCase {
 public:
  EagerCase(TorchCase t, bool softmax_in_fp32)
      : t_(std::move(t)),
        formats_{t_.q.scalar_type(), softmax_in_fp32 ? at::kFloat : t_.q.scalar_type()},
        outputs_(t_) {
    if (t_.backward) dsink_rows_ = at::zeros({t_.s.b, t_.s.hq, t_.s.sq}, t_.q.options());
  }

  bool has_backward() const { return t_.backward; }
  std::vector<Piece> pieces() const { return t_.pieces(); }

  // The groups of a piece, which share its mask.
  std::vector<Group> groups(const Piece& piece) const {
    const at::Tensor mask = t_.mask(piece, formats_.products, mask_value(formats_.products));
    std::vector<Group> groups;
    for (std::int64_t item = 0; item < t_.s.b * t_.s.hkv; ++item) {
      Group g{piece, item / t_.s.hkv, item % t_.s.hkv, {}, {}, {}, {}, mask, {}};
      g.q = heads(t_.q, g);
      g.k = head(t_.k, g);
      g.v = head(t_.v, g);
      if (t_.backward) g.dout = heads(t_.dout, g);
      if (t_.sinks.defined())
        g.sinks = t_.sinks.narrow(0, g.kv * t_.s.group(), t_.s.group()).to(formats_.products);
      groups.push_back(std::move(g));
    }
    return groups;
  }

  Forward forward(const Group& g) const { return torch_paths::forward(g, t_.s.scale, formats_); }
  Backward backward(const Group& g, const Forward& f) const {
    return torch_paths::backward(g, f, t_.s.scale, formats_);
  }

  void put(const Group& g, const Forward& f) { heads(outputs_.out, g).copy_(f.out); }
  void put(const Group& g, const Backward& b) {
    heads(outputs_.dq, g).copy_(b.dq);
    head(outputs_.dk, g).copy_(b.dk);
    head(outputs_.dv, g).copy_(b.dv);
    if (b.dsink_rows.defined()) heads(dsink_rows_, g).copy_(b.dsink_rows);
  }

  Outputs finish(bool with_gradients) {
    if (with_gradients) outputs_.dsinks = dsink_rows_.sum(at::IntArrayRef{0, 2});
    return outputs_.finish(t_, Results{.gradients = with_gradients});
  }

 private:
  // The group's part of a tensor by query heads, and the key/value head's of one by those.
  at::Tensor heads(const at::Tensor& x, const Group& g) const {
    return x.select(0, g.batch)
        .narrow(0, g.kv * t_.s.group(), t_.s.group())
        .narrow(1, g.piece.first_row, g.piece.rows);
  }
  static at::Tensor head(const at::Tensor& x, const Group& g) {
    return x.select(0, g.batch).select(0, g.kv).narrow(0, g.piece.first_key, g.piece.keys);
  }

  TorchCase t_;
  Formats formats_;
  TorchOutputs outputs_;
  at::Tensor dsink_rows_;  // [b, hq, sq], in the format
};

// One group's scores live at a time.
Outputs run(const TorchCase& t, bool softmax_in_fp32) {
  EagerCase eager(t, softmax_in_fp32);
  for (const Piece& piece : eager.pieces()) {
    for (const Group& group : eager.groups(piece)) {
      const Forward f = eager.forward(group);
      eager.put(group, f);
      if (eager.has_backward()) eager.put(group, eager.backward(group, f));
    }
  }
  return eager.finish(eager.has_backward());
}

// rows * keys of the largest document, and of all.
struct Scores {
  double most = 0, all = 0;
};

Scores scores_of(const AttentionShape& s) {
  Scores scores;
  for (const DocumentSize& document : s.documents()) {
    const double size = static_cast<double>(document.rows) * static_cast<double>(document.keys);
    scores.most = std::max(scores.most, size);
    scores.all += size;
  }
  return scores;
}

double bytes_at_once(const AttentionShape& s) {
  return kScoreTensors * scores_of(s).most * static_cast<double>(s.group()) * 4;
}

std::optional<std::string> too_large(double bytes, double most) {
  if (bytes <= most) return std::nullopt;
  const auto gib = [](double value) { return std::to_string(static_cast<int>(value / (1 << 30))); };
  return "needs about " + gib(bytes) + " GiB of scores, more than " + gib(most) + " GiB";
}

double most_score_bytes(at::DeviceType device) {
  if (device == at::kCPU) return kMostScoreBytes;
  return kMostScoreShare * static_cast<double>(cuda_device().memory);
}

std::optional<std::string> unsupported(const Case& c, at::DeviceType device) {
  if (c.dlse.given()) return "eager returns no LSE, so it has no input for its gradient";
  return too_large(bytes_at_once(c.problem.shape), most_score_bytes(device));
}

// All groups' scores stay for the backward, as they do in training.
PreparedPath prepare(const Case& c, bool softmax_in_fp32) {
  const AttentionShape& s = c.problem.shape;
  const double format_bytes = s.dtype == DType::kFp32 ? 4 : 2;
  const double kept = softmax_in_fp32 && format_bytes < 4 ? 4 + format_bytes : format_bytes;
  const double bytes = kept * scores_of(s).all * static_cast<double>(s.b * s.hq) + bytes_at_once(s);
  if (const auto reason = too_large(bytes, most_score_bytes(at::kCUDA))) throw EnvironmentError(*reason);

  struct State {
    EagerCase eager;
    std::vector<Group> groups;
    std::vector<Forward> forwards;
    std::vector<Backward> backwards;
  };
  const auto state =
      std::make_shared<State>(State{EagerCase(TorchCase(c, at::kCUDA), softmax_in_fp32), {}, {}, {}});
  for (const Piece& piece : state->eager.pieces()) {
    for (Group& group : state->eager.groups(piece)) state->groups.push_back(std::move(group));
  }
  PreparedPath prepared;
  prepared.forward = [state] {
    const at::NoGradGuard no_grad;
    state->forwards.clear();
    for (const Group& group : state->groups) state->forwards.push_back(state->eager.forward(group));
  };
  if (state->eager.has_backward()) {
    prepared.backward = [state] {
      const at::NoGradGuard no_grad;
      state->backwards.clear();
      for (std::size_t i = 0; i < state->groups.size(); ++i)
        state->backwards.push_back(state->eager.backward(state->groups[i], state->forwards.at(i)));
    };
  }
  prepared.outputs = [state] {
    const at::NoGradGuard no_grad;
    for (std::size_t i = 0; i < state->forwards.size(); ++i)
      state->eager.put(state->groups[i], state->forwards[i]);
    for (std::size_t i = 0; i < state->backwards.size(); ++i)
      state->eager.put(state->groups[i], state->backwards[i]);
    return state->eager.finish(!state->backwards.empty());
  };
  return prepared;
}

Path eager_path(const char* name, bool softmax_in_fp32) {
  constexpr const char* kSteps = "aten, transformers' steps";
  return make_path({name, kSteps, kSteps, unsupported,
                    [softmax_in_fp32](const TorchCase& t) { return run(t, softmax_in_fp32); },
                    [softmax_in_fp32](const Case& c) { return prepare(c, softmax_in_fp32); }});
}

}  // namespace

std::vector<Path> eager_paths() {
  return {eager_path("eager", false), eager_path("eager_fp32", true)};
}

// The plain computation that a float64 check would use: scores, sink column, softmax, autograd. One document,
// sq = sk.
double seconds_of_float64_eager(const Case& c, int threads) {
  at::set_num_threads(threads > 0 ? threads : at::get_num_threads());
  const TorchCase t(c);
  const auto leaf = [](const at::Tensor& x) { return x.to(at::kDouble).contiguous().requires_grad_(true); };
  const at::Tensor q = leaf(t.q), k = leaf(t.k), v = leaf(t.v), sinks = leaf(t.sinks);
  const at::Tensor dout = t.dout.to(at::kDouble);
  const at::Tensor mask = t.mask(t.pieces().at(0), at::kDouble, -std::numeric_limits<double>::infinity());

  const auto start = std::chrono::steady_clock::now();
  const std::int64_t group = t.s.group();
  const at::Tensor keys = k.repeat_interleave(group, 1), values = v.repeat_interleave(group, 1);
  at::Tensor weights = at::matmul(q, keys.transpose(-1, -2)) * t.s.scale;
  if (mask.defined()) weights = weights + mask;
  const at::Tensor with_sink =
      at::cat({weights, sinks.view({1, -1, 1, 1}).expand({t.s.b, t.s.hq, t.s.sq, 1})}, -1);
  const at::Tensor out = at::matmul(at::softmax(with_sink, -1).narrow(-1, 0, t.s.sk), values);
  out.backward(dout);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace sinkscope::torch_paths
