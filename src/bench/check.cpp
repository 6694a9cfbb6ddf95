// SPDX-License-Identifier: Apache-2.0
#include "src/bench/check.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "fmt/format.h"

#include "src/core/parallel.hpp"

namespace sinkscope {
namespace {

// Heads [first, first + count) of a tensor [b, h, ...]. A tensor that is not given stays so.
Tensor heads_of(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  if (!tensor.given()) return {};
  std::vector<std::int64_t> shape = tensor.shape();
  const std::int64_t b = shape[0], h = shape[1];
  shape[1] = count;
  Tensor part(tensor.dtype(), shape);
  const std::size_t head_bytes = tensor.bytes() / static_cast<std::size_t>(b * h);
  for (std::int64_t batch = 0; batch < b; ++batch) {
    std::copy_n(tensor.data() + static_cast<std::size_t>(batch * h + first) * head_bytes,
                static_cast<std::size_t>(count) * head_bytes,
                part.data() + static_cast<std::size_t>(batch * count) * head_bytes);
  }
  return part;
}

// The same of a tensor [h].
Tensor entries_of(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  if (!tensor.given()) return {};
  Tensor part(tensor.dtype(), {count});
  const std::size_t bytes = size_of(tensor.dtype());
  std::copy_n(tensor.data() + static_cast<std::size_t>(first) * bytes,
              static_cast<std::size_t>(count) * bytes, part.data());
  return part;
}

std::int64_t count_nonfinite(const Tensor& tensor, int threads) {
  constexpr std::int64_t kRun = 1 << 20;
  std::atomic<std::int64_t> count = 0;
  parallel_for((tensor.size() + kRun - 1) / kRun, threads, [&](std::int64_t run) {
    std::vector<double> values(static_cast<std::size_t>(std::min(kRun, tensor.size() - run * kRun)));
    tensor.widen(run * kRun, values);
    count += std::count_if(values.begin(), values.end(), [](double v) { return !std::isfinite(v); });
  });
  return count;
}

// Of the worst head; of dsinks, where one number may cancel, of all heads together.
double relative_l2(const TensorMetrics& metrics) {
  double worst = 0, error = 0, size = 0;
  for (const HeadMetrics& head : metrics.heads) {
    worst = head.rel_l2 <= worst ? worst : head.rel_l2;  // NaN stays
    error = std::hypot(error, head.max_abs);
    size = std::hypot(size, head.norm_ref);
  }
  return metrics.tensor == TensorName::kDsinks ? error / size : worst;
}

// What is wrong with one tensor of the checked head, or nothing.
std::string fault_of(const TensorMetrics& metrics, DType dtype, const Gate& gate, bool judged) {
  for (const HeadMetrics& head : metrics.heads) {
    if (head.nonfinite_mismatch > 0)
      return fmt::format("{} elements whose finiteness is not the truth's", head.nonfinite_mismatch);
  }
  if (judged) {
    const VerdictRow row = judge(gate, dtype, metrics);
    if (row.verdict != Verdict::kFailed) return "";
    return fmt::format("{} of {:.3g} over the gate's {:.3g}, {}", row.metric, row.value, row.limit,
                       place_of(row));
  }
  const double worst = relative_l2(metrics);
  return worst <= kWrongRelL2 ? ""
                              : fmt::format("relative L2 of {:.3g}, wanted {} at most", worst, kWrongRelL2);
}

}  // namespace

Case part_of(const Case& c, KvHeads heads) {
  const std::int64_t group = c.problem.shape.group();
  const std::int64_t first = heads.first * group, count = heads.count * group;
  Case part;
  part.name = c.name;
  part.problem = c.problem;
  part.problem.shape.hq = count;
  part.problem.shape.hkv = heads.count;
  part.q = heads_of(c.q, first, count);
  part.k = heads_of(c.k, heads.first, heads.count);
  part.v = heads_of(c.v, heads.first, heads.count);
  part.sinks = entries_of(c.sinks, first, count);
  part.dout = heads_of(c.dout, first, count);
  part.dlse = heads_of(c.dlse, first, count);
  return part;
}

Outputs part_of(const Outputs& outputs, const AttentionShape& shape, KvHeads heads) {
  const std::int64_t first = heads.first * shape.group(), count = heads.count * shape.group();
  return {heads_of(outputs.out, first, count),
          heads_of(outputs.lse, first, count),
          heads_of(outputs.dq, first, count),
          heads_of(outputs.dk, heads.first, heads.count),
          heads_of(outputs.dv, heads.first, heads.count),
          entries_of(outputs.dsinks, first, count)};
}

OutputCheck check_outputs(const Outputs& outputs, const Case& c, KvHeads heads, const Truth& truth,
                          const Gate& gate, bool judged, int threads) {
  OutputCheck check;
  const auto wrong = [&](TensorName name, const std::string& what) {
    if (check.wrong.empty() && !what.empty()) check.wrong = fmt::format("{}: {}", text(name), what);
  };
  const Case part = part_of(c, heads);
  const Outputs got = part_of(outputs, c.problem.shape, heads);
  for (const TensorName name : kTensorNames) {
    if (!outputs[name].given()) continue;
    const TensorMetrics metrics = measure(part, truth, name, got[name], nullptr, threads);
    check.rel_l2[std::string(text(name))] = relative_l2(metrics);
    wrong(name, fault_of(metrics, c.problem.shape.dtype, gate, judged));
    const std::int64_t lost = count_nonfinite(outputs[name], threads);
    if (lost > 0) wrong(name, fmt::format("{} elements are not finite", lost));
  }
  if (!outputs.out.given()) check.wrong = "no output";
  return check;
}

}  // namespace sinkscope
