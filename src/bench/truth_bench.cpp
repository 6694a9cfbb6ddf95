// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "src/bench/bench.hpp"
#include "src/compare/truth_kind.hpp"
#include "src/core/error.hpp"
#include "src/inputs/case.hpp"
#include "src/torch/module.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {
namespace {

constexpr const char* kWarmUpLine = "b1 hq8 hkv1 sq4096 sk4096 d64 bf16 causal seed=1";
constexpr const char* kLongLine = "b1 hq64 hkv8 sq131072 sk131072 d64 bf16 causal seed=1";
constexpr std::int64_t kCheckedRows = 64;

// The last rows of one group of heads as a problem of their own. They see every key, and the last keys are seen
// by no other row, so that all of their results, dk and dv of the last keys included, are those of the whole.
class LastRows {
 public:
  LastRows(const Case& c, std::int64_t kv) : s_(c.problem.shape), kv_(kv) {
    const std::int64_t group = s_.group();
    for (std::int64_t g = 0; g < group; ++g) {
      append(c.q, first_row(g) * s_.d, kCheckedRows * s_.d, q_);
      append(c.dout, first_row(g) * s_.d, kCheckedRows * s_.d, dout_);
    }
    append(c.k, kv * s_.sk * s_.d, s_.sk * s_.d, k_);
    append(c.v, kv * s_.sk * s_.d, s_.sk * s_.d, v_);
    append(c.sinks, kv * group, group, sinks_);
    const double scale = static_cast<float>(s_.scale);
    const reference::Problem problem = {1, group, 1, kCheckedRows, s_.sk, s_.d, true, 0, scale, {}, {}};
    ref_ = reference::attention(problem, {q_, k_, v_, sinks_, dout_, {}},
                                {unit_roundoff(s_.dtype), underflow_unit(s_.dtype)});
  }

  // Largest relative L2 of a head of `got`, the truth of the whole problem.
  nlohmann::json distance(const Truth& got) const {
    nlohmann::json result;
    for (const auto& [name, a, b] :
         {std::tuple{"values", &got.value, &ref_.value}, {"sigmas", &got.sigma, &ref_.sigma}}) {
      double worst = 0;
      for (std::int64_t g = 0; g < s_.group(); ++g) {
        const std::int64_t from = first_row(g), to = g * kCheckedRows;
        worst = std::max(worst, of(a->out, b->out, from * s_.d, to * s_.d, s_.d));
        worst = std::max(worst, of(a->lse, b->lse, from, to, 1));
        worst = std::max(worst, of(a->dq, b->dq, from * s_.d, to * s_.d, s_.d));
      }
      const std::int64_t key = s_.sk - kCheckedRows;
      worst = std::max(worst, of(a->dk, b->dk, (kv_ * s_.sk + key) * s_.d, key * s_.d, s_.d));
      worst = std::max(worst, of(a->dv, b->dv, (kv_ * s_.sk + key) * s_.d, key * s_.d, s_.d));
      result[name] = worst;
    }
    return result;
  }

 private:
  std::int64_t first_row(std::int64_t g) const { return (kv_ * s_.group() + g + 1) * s_.sq - kCheckedRows; }

  static void append(const Tensor& from, std::int64_t first, std::int64_t count, std::vector<double>& to) {
    to.resize(to.size() + static_cast<std::size_t>(count));
    from.widen(first, std::span(to).last(static_cast<std::size_t>(count)));
  }

  static double of(const std::vector<double>& got, const std::vector<double>& ref, std::int64_t got_first,
                   std::int64_t ref_first, std::int64_t width) {
    double error2 = 0, norm2 = 0;
    for (std::int64_t i = 0; i < kCheckedRows * width; ++i) {
      const double r = ref.at(static_cast<std::size_t>(ref_first + i));
      const double e = got.at(static_cast<std::size_t>(got_first + i)) - r;
      error2 += e * e;
      norm2 += r * r;
    }
    return std::sqrt(error2 / norm2);
  }

  const AttentionShape& s_;
  std::int64_t kv_;
  std::vector<double> q_, k_, v_, sinks_, dout_;
  reference::Result ref_;
};

}  // namespace

nlohmann::json bench_truth_cuda(const BenchOptions& options, const BenchProgress& progress) {
  const TorchModule& torch = torch_module();
  if (const std::string reason = unavailable(TruthKind::kCuda); !reason.empty())
    throw EnvironmentError("the truth on the GPU cannot be timed: " + reason);
  torch.cuda_truth(generate_case(parse_problem(kWarmUpLine), "bench", options.threads));
  if (progress) progress("inputs", 0);
  const Case c = generate_case(parse_problem(kLongLine), "bench", options.threads);
  if (progress) progress("truth", 0.1);
  Truth truth;
  const double seconds = seconds_of([&] { truth = torch.cuda_truth(c); });
  nlohmann::json result = {{"problem", kLongLine},
                           {"seconds", seconds},
                           {"device_peak_gib", static_cast<double>(torch.cuda_peak_bytes()) / (1 << 30)},
                           {"machine", machine_json(options.threads)}};
  for (const std::int64_t kv : {std::int64_t{0}, c.problem.shape.hkv - 1}) {
    if (progress) progress("Eigen truth of the last rows", 0.9);
    result["last_rows_of_kv_head_" + std::to_string(kv)] = LastRows(c, kv).distance(truth);
  }
  return result;
}

}  // namespace sinkscope
