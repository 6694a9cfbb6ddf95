// SPDX-License-Identifier: Apache-2.0
// transformers' eager_attention_forward of GPT-OSS and its autograd, step by step, so that every intermediate
// is rounded to the case's format where transformers (5.17, on a GPU) rounds it. Documents are isolated.
#include <ATen/Parallel.h>
#include <algorithm>
#include <chrono>
#include <limits>

#include "src/torch/document.hpp"

namespace sinkscope::torch_paths {
namespace {

constexpr double kMostScoreBytes = 4.0 * (1ULL << 30);
constexpr double kScoreTensors = 6;  // of [group, sq, sk] that live at once

// What transformers adds where nothing is seen: the format's lowest finite number.
double mask_value(at::ScalarType dtype) {
  if (dtype == at::kHalf) return -65504.0;
  return dtype == at::kBFloat16 ? -0x1.FEp127 : -static_cast<double>(std::numeric_limits<float>::max());
}

// One key/value head of one piece with its group of query heads, [group, rows or keys, d].
struct Group {
  at::Tensor q, k, v, dout;
  at::Tensor mask;   // [rows, keys], or undefined
  at::Tensor sinks;  // [group], in the format, or undefined
};

struct GroupResult {
  at::Tensor out, dq, dk, dv;  // dk, dv [keys, d]
  at::Tensor dsink_rows;       // [group, rows]: the sink's gradient before it is summed
};

GroupResult attend(const Group& g, double scale, bool softmax_in_fp32, bool backward) {
  const at::ScalarType dtype = g.q.scalar_type();
  const at::ScalarType softmax_dtype = softmax_in_fp32 ? at::kFloat : dtype;
  const std::int64_t keys = g.k.size(0);
  const bool has_sink = g.sinks.defined();

  at::Tensor weights = at::matmul(g.q, g.k.transpose(-1, -2)) * scale;
  if (g.mask.defined()) weights = weights + g.mask;
  if (has_sink) weights = at::cat({weights, g.sinks.view({-1, 1, 1}).expand({-1, weights.size(1), 1})}, -1);
  const auto [high, high_at] = weights.max(-1, true);
  const at::Tensor probabilities = at::softmax(weights - high, -1, softmax_dtype);
  const at::Tensor p = probabilities.narrow(-1, 0, keys).to(dtype);

  GroupResult result;
  result.out = at::matmul(p, g.v);
  if (!backward) return result;
  // dv, and dk below, are summed over the group after each head's was rounded, as the backward of repeat_kv
  // does.
  result.dv = at::matmul(p.transpose(-1, -2), g.dout).sum(0);
  at::Tensor dp = at::matmul(g.dout, g.v.transpose(-1, -2)).to(softmax_dtype);
  if (has_sink) dp = at::constant_pad_nd(dp, {0, 1});
  // The softmax backward on a GPU rounds P * dP to the format before it sums; then the gradient of the
  // subtracted maximum goes to where the maximum was.
  const at::Tensor product = probabilities * dp;
  const at::Tensor sum = product.sum(-1, true, at::kFloat);
  at::Tensor ds = (product.to(at::kFloat) - probabilities.to(at::kFloat) * sum).to(softmax_dtype).to(dtype);
  ds = ds + at::zeros_like(ds).scatter(-1, high_at, -ds.sum(-1, true));
  if (has_sink) result.dsink_rows = ds.select(-1, keys);
  const at::Tensor dweights = ds.narrow(-1, 0, keys) * scale;
  result.dq = at::matmul(dweights, g.k);
  result.dk = at::matmul(dweights.transpose(-1, -2), g.q).sum(0);
  return result;
}

Outputs eager(const TorchCase& t, bool softmax_in_fp32) {
  const std::int64_t group = t.s.group();
  const at::ScalarType dtype = t.q.scalar_type();
  TorchOutputs outputs(t);
  at::Tensor dsink_rows;
  if (t.backward) dsink_rows = at::zeros({t.s.b, t.s.hq, t.s.sq}, t.q.options());
  for (const Piece& piece : t.pieces()) {
    const at::Tensor mask = t.mask(piece, dtype, mask_value(dtype));
    for (std::int64_t item = 0; item < t.s.b * t.s.hkv; ++item) {
      const std::int64_t batch = item / t.s.hkv;
      const std::int64_t kv = item % t.s.hkv;
      const auto heads = [&](const at::Tensor& x) {
        return x.select(0, batch).narrow(0, kv * group, group).narrow(1, piece.first_row, piece.rows);
      };
      const auto head = [&](const at::Tensor& x) {
        return x.select(0, batch).select(0, kv).narrow(0, piece.first_key, piece.keys);
      };
      Group g{heads(t.q), head(t.k), head(t.v), {}, mask, {}};
      if (t.backward) g.dout = heads(t.dout);
      if (t.sinks.defined()) g.sinks = t.sinks.narrow(0, kv * group, group).to(dtype);
      const GroupResult result = attend(g, t.s.scale, softmax_in_fp32, t.backward);
      heads(outputs.out).copy_(result.out);
      if (!t.backward) continue;
      heads(outputs.dq).copy_(result.dq);
      head(outputs.dk).copy_(result.dk);
      head(outputs.dv).copy_(result.dv);
      if (result.dsink_rows.defined()) heads(dsink_rows).copy_(result.dsink_rows);
    }
  }
  if (t.backward) outputs.dsinks = dsink_rows.sum(at::IntArrayRef{0, 2});
  return outputs.finish(t.c, false, true);
}

std::optional<std::string> unsupported(const Case& c) {
  if (c.dlse.given()) return "eager returns no LSE, so it has no input for its gradient";
  const AttentionShape& s = c.problem.shape;
  std::int64_t most = s.sq * s.sk;
  if (!s.docs.empty()) {
    most = 0;
    const std::vector<std::int64_t>& keys = s.docs_k.empty() ? s.docs : s.docs_k;
    for (std::size_t i = 0; i < s.docs.size(); ++i) most = std::max(most, s.docs[i] * keys[i]);
  }
  const double bytes = kScoreTensors * static_cast<double>(most) * static_cast<double>(s.group()) * 4;
  if (bytes <= kMostScoreBytes) return std::nullopt;
  return "needs about " + std::to_string(static_cast<int>(bytes / (1 << 30))) +
         " GiB of scores, more than 4 GiB";
}

}  // namespace

std::vector<Path> eager_paths() {
  constexpr const char* kBackend = "cpu aten, transformers' steps";
  return {make_path("eager", kBackend, unsupported, [](const TorchCase& t) { return eager(t, false); }),
          make_path("eager_fp32", kBackend, unsupported, [](const TorchCase& t) { return eager(t, true); })};
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
