// SPDX-License-Identifier: Apache-2.0
// Mistakes of the backward alone, and of the LSE that is handed to it.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "src/faults/visible_keys.hpp"
#include "src/faults/wrap.hpp"

namespace sinkscope {
namespace {

std::optional<std::string> needs_dsinks(const Case& c) {
  if (c.sinks.given() && c.dout.given() && c.problem.grads.s) return std::nullopt;
  return "the mistake is in dsinks, the case does not ask for it";
}

std::optional<std::string> needs_sinks_and_all_gradients(const Case& c) {
  const Grads& g = c.problem.grads;
  if (c.sinks.given() && c.dout.given() && g.q && g.k && g.v && g.s && !c.dlse.given()) return std::nullopt;
  return "the mistake needs a sink, all gradients and no gradient of the LSE";
}

std::optional<std::string> needs_batch(const Case& c) {
  if (c.problem.shape.b > 1) return needs_dsinks(c);
  return "the mistake needs two batch entries";
}

std::optional<std::string> needs_shared_keys(const Case& c) {
  if (c.problem.shape.group() > 1 && c.dout.given() && c.problem.grads.k && c.problem.grads.v)
    return std::nullopt;
  return "the mistake needs dk and dv that query heads share";
}

std::optional<std::string> visible(const Case&) {
  return std::nullopt;
}

const Tensor& lse_of(const PathRun& run) {
  if (!run.outputs.lse.given()) throw std::runtime_error("the mistake needs an LSE, the path gives none");
  return run.outputs.lse;
}

// The same case with what comes from some rows taken out of every gradient.
template <typename Keeps>
Case with_gradients_of(const Case& c, Keeps keeps) {
  const AttentionShape& s = c.problem.shape;
  Case part = c;
  for (std::int64_t row = 0; row < s.b * s.hq * s.sq; ++row) {
    if (keeps(row / (s.hq * s.sq), row / s.sq % s.hq)) continue;
    for (std::int64_t column = 0; column < s.d; ++column) part.dout.set(row * s.d + column, 0);
    if (part.dlse.given()) part.dlse.set(row, 0);
  }
  return part;
}

Path dsink_sign(const Path& healthy) {
  return wrap(healthy, "dsink_sign", needs_dsinks,
              [](const Path& path, const Case& c, const PathOptions& options) {
                PathRun run = path.run(c, options);
                for (std::int64_t h = 0; h < run.outputs.dsinks.size(); ++h)
                  run.outputs.dsinks.set(h, -run.outputs.dsinks.at(h));
                return run;
              });
}

Path dsink_batch(const Path& healthy) {
  return wrap(
      healthy, "dsink_batch", needs_batch, [](const Path& path, const Case& c, const PathOptions& options) {
        PathRun run = path.run(c, options);
        const Case first = with_gradients_of(c, [](std::int64_t batch, std::int64_t) { return batch == 0; });
        run.outputs.dsinks = path.run(first, options).outputs.dsinks;
        return run;
      });
}

Path dsink_padding(const Path& healthy) {
  const auto needs_padding = [](const Case& c) -> std::optional<std::string> {
    if (c.padded_dout.given()) return needs_dsinks(c);
    return "the mistake needs rows of padding whose dout is not zero";
  };
  return wrap(healthy, "dsink_padding", needs_padding,
              [](const Path& path, const Case& c, const PathOptions& options) {
                Case with_padding = c;
                with_padding.dout = c.padded_dout;
                with_padding.dlse = c.padded_dlse;
                PathRun run = path.run(c, options);
                run.outputs.dsinks = path.run(with_padding, options).outputs.dsinks;
                return run;
              });
}

// -sum_i p_i sum_j P_ij dS_ij, from the path's own out and lse: a published formula read as it is printed.
double dsink_from_ds_of(const Case& c, const PathRun& run, std::int64_t batch, std::int64_t head) {
  const AttentionShape& s = c.problem.shape;
  const std::int64_t kv = batch * s.hkv + head / s.group();
  const auto dot = [&](const Tensor& a, std::int64_t row_a, const Tensor& b, std::int64_t row_b) {
    double sum = 0;
    for (std::int64_t i = 0; i < s.d; ++i) sum += a.at(row_a * s.d + i) * b.at(row_b * s.d + i);
    return sum;
  };
  double total = 0;
  for (std::int64_t i = 0; i < s.sq; ++i) {
    const std::int64_t row = (batch * s.hq + head) * s.sq + i;
    const double lse = lse_of(run).at(row), delta = dot(c.dout, row, run.outputs.out, row);
    const double dlse = c.dlse.given() ? c.dlse.at(row) : 0;
    if (std::isinf(lse)) continue;
    const VisibleKeys keys = visible_keys(s, i);
    double sum = 0;
    for (std::int64_t j = keys.first; j < keys.end; ++j) {
      const double p = std::exp(s.scale * dot(c.q, row, c.k, kv * s.sk + j) - lse);
      sum += p * p * (dot(c.dout, row, c.v, kv * s.sk + j) - delta + dlse);
    }
    total -= std::exp(c.sinks.at(head) - lse) * sum;
  }
  return total;
}

Path dsink_from_ds(const Path& healthy) {
  return wrap(healthy, "dsink_from_ds", needs_dsinks,
              [](const Path& path, const Case& c, const PathOptions& options) {
                PathRun run = path.run(c, options);
                for (std::int64_t h = 0; h < run.outputs.dsinks.size(); ++h) {
                  double sum = 0;
                  for (std::int64_t batch = 0; batch < c.problem.shape.b; ++batch)
                    sum += dsink_from_ds_of(c, run, batch, h);
                  run.outputs.dsinks.set(h, sum);
                }
                return run;
              });
}

// p / (1 - p) of a row, p the sink's share: from the LSE without the sink, so that nothing cancels.
double odds_of_sink(const Case& c, const PathRun& sinkless, std::int64_t row) {
  const AttentionShape& s = c.problem.shape;
  const double odds = std::exp(c.sinks.at(row / s.sq % s.hq) - lse_of(sinkless).at(row));
  return std::isfinite(odds) ? odds : 0;  // no key: nothing to get wrong
}

PathRun run_without_sinks(const Path& path, const Case& c, const PathOptions& options) {
  Case sinkless = c;
  sinkless.sinks = {};
  return path.run(sinkless, options);
}

// The same numbers in fp32, so that what is done to them is not rounded on top.
Case in_fp32(const Case& c) {
  Case wide = c;
  wide.problem.shape.dtype = DType::kFp32;
  wide.problem.residual = false;
  for (Tensor* tensor : {&wide.q, &wide.k, &wide.v, &wide.dout})
    *tensor = Tensor::rounded(DType::kFp32, tensor->shape(), tensor->widened());
  return wide;
}

Tensor rounded_as(const Tensor& tensor, DType dtype) {
  return Tensor::rounded(dtype, tensor.shape(), tensor.widened());
}

// Delta of the O before the sink is Delta / (1 - p): a healthy backward makes the same dS and dsinks of a dLSE of
// -Delta p / (1 - p).
PathRun run_with_delta_uncorrected(const Path& path, const Case& c, const PathRun& right,
                                   const PathOptions& options) {
  const AttentionShape& s = c.problem.shape;
  const PathRun sinkless = run_without_sinks(path, c, options);
  if (!sinkless.outputs.lse.given())
    throw std::runtime_error("the mistake wraps only a path that gives an LSE");
  Case shifted = c;
  shifted.dlse = Tensor(DType::kFp32, {s.b, s.hq, s.sq});
  for (std::int64_t row = 0; row < shifted.dlse.size(); ++row) {
    double delta = 0;
    for (std::int64_t i = row * s.d; i < (row + 1) * s.d; ++i)
      delta += right.outputs.out.at(i) * c.dout.at(i);
    shifted.dlse.set(row, -delta * odds_of_sink(c, sinkless, row));
  }
  return path.run(shifted, options);
}

Path delta_uncorrected(const Path& healthy) {
  return wrap(healthy, "delta_uncorrected", needs_sinks_and_all_gradients,
              [](const Path& path, const Case& c, const PathOptions& options) {
                return run_with_delta_uncorrected(path, c, path.run(c, options), options);
              });
}

// A P that is made again without the sink is P / (1 - p): a healthy backward makes the same of a larger dO.
Path lse_without_sink(const Path& healthy) {
  return wrap(healthy, "lse_without_sink", needs_sinks_and_all_gradients,
              [](const Path& path, const Case& c, const PathOptions& options) {
                const AttentionShape& s = c.problem.shape;
                PathRun run = path.run(c, options);
                const PathRun sinkless = run_without_sinks(path, c, options);
                Case larger = in_fp32(c);
                for (std::int64_t row = 0; row < s.b * s.hq * s.sq; ++row) {
                  const double by = 1 + odds_of_sink(c, sinkless, row);
                  for (std::int64_t i = row * s.d; i < (row + 1) * s.d; ++i)
                    larger.dout.set(i, c.dout.at(i) * by);
                }
                const PathRun wrong = path.run(larger, options);
                run.outputs.lse = sinkless.outputs.lse;
                run.outputs.dq = rounded_as(wrong.outputs.dq, s.dtype);
                run.outputs.dk = rounded_as(wrong.outputs.dk, s.dtype);
                run.outputs.dv = rounded_as(wrong.outputs.dv, s.dtype);
                return run;
              });
}

Path lse_log2(const Path& healthy) {
  return wrap(healthy, "lse_log2", visible, [](const Path& path, const Case& c, const PathOptions& options) {
    PathRun run = path.run(c, options);
    for (std::int64_t row = 0; row < lse_of(run).size(); ++row)
      run.outputs.lse.set(row, run.outputs.lse.at(row) / std::log(2.0));
    return run;
  });
}

// The first query head of each group alone.
Path gqa_not_summed(const Path& healthy) {
  return wrap(healthy, "gqa_not_summed", needs_shared_keys,
              [](const Path& path, const Case& c, const PathOptions& options) {
                const std::int64_t group = c.problem.shape.group();
                PathRun run = path.run(c, options);
                const Case first = with_gradients_of(
                    c, [group](std::int64_t, std::int64_t head) { return head % group == 0; });
                const PathRun one = path.run(first, options);
                run.outputs.dk = one.outputs.dk;
                run.outputs.dv = one.outputs.dv;
                return run;
              });
}

Path gqa_mean(const Path& healthy) {
  return wrap(healthy, "gqa_mean", needs_shared_keys,
              [](const Path& path, const Case& c, const PathOptions& options) {
                PathRun run = path.run(c, options);
                for (Tensor* tensor : {&run.outputs.dk, &run.outputs.dv}) {
                  for (std::int64_t i = 0; i < tensor->size(); ++i)
                    tensor->set(i, tensor->at(i) / static_cast<double>(c.problem.shape.group()));
                }
                return run;
              });
}

}  // namespace

// Where the case gives dLSE, it is dropped. Elsewhere: O sigmoid(lse - s) through an autograd that drops the gradient of
// lse computes dS = P (dP - dO.O / (1 - p)) in place of P (dP - dO.O), as with the Delta of the O before the sink. Only
// dq and dk move.
Path dlse_dropped(const Path& healthy) {
  const auto invisible = [](const Case& c) -> std::optional<std::string> {
    if (!c.dout.given()) return "the mistake is in the backward, the case has none";
    if (!c.problem.grads.q && !c.problem.grads.k)
      return "the mistake is in dq and dk, the case asks for neither";
    if (!c.dlse.given() && !c.sinks.given()) return "the mistake needs a sink or a gradient of the LSE";
    return std::nullopt;
  };
  Path planted = wrap(healthy, "dlse_dropped", invisible,
                      [](const Path& path, const Case& c, const PathOptions& options) {
                        if (c.dlse.given()) {
                          Case without = c;
                          without.dlse = {};
                          return path.run(without, options);
                        }
                        PathRun run = path.run(c, options);
                        const PathRun dropped = run_with_delta_uncorrected(path, c, run, options);
                        run.outputs.dq = dropped.outputs.dq;
                        run.outputs.dk = dropped.outputs.dk;
                        return run;
                      });
  // Without a dLSE of the case's own the healthy path is handed one, which it must take.
  planted.unsupported = [healthy, plain = planted.unsupported](const Case& c) {
    std::optional<std::string> reason = plain(c);
    if (reason || c.dlse.given()) return reason;
    Case with_dlse = c;
    with_dlse.dlse = Tensor(DType::kFp32, {c.problem.shape.b, c.problem.shape.hq, c.problem.shape.sq});
    return healthy.unsupported(with_dlse);
  };
  return planted;
}

std::vector<Fault> gradient_faults() {
  return {
      {"dsink_sign", "the sink's gradient has the wrong sign", dsink_sign},
      {"dsink_batch", "the sink's gradient is that of the first batch entry", dsink_batch},
      {"dsink_from_ds", "the sink's gradient is made from dS", dsink_from_ds},
      {"dsink_padding", "the sink's gradient counts rows of padding", dsink_padding},
      {"delta_uncorrected", "Delta is taken from the out before the sink", delta_uncorrected},
      {"lse_without_sink", "the LSE and the backward's P leave the sink out", lse_without_sink},
      {"lse_log2", "the LSE is handed out in base 2", lse_log2},
      {"gqa_not_summed", "dk and dv hold the first query head of each group", gqa_not_summed},
      {"gqa_mean", "dk and dv are means over the group", gqa_mean},
  };
}

}  // namespace sinkscope
