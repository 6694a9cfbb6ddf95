// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <sys/resource.h>
#include <thread>

#include "src/bench/bench.hpp"
#include "src/inputs/case.hpp"
#include "src/record/run_info.hpp"
#include "src/torch/module.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {
namespace {

constexpr const char* kLine = "b1 hq8 hkv8 sq2048 sk2048 d64 fp32 causal seed=1";
constexpr int kGemmSize = 1024;
constexpr int kGemmCount = 4;
// Matrix products of the truth: logits, out, dP, dQ, dK, dV; with sigma also tau and psi, and those of out, dq
// (two), dk (two), dv.
constexpr int kProducts = 6;
constexpr int kSigmaProducts = 8;

// One case widened once, so that only the reference is timed.
struct WidenedCase {
  explicit WidenedCase(const Case& c)
      : problem{c.problem.shape.b,
                c.problem.shape.hq,
                c.problem.shape.hkv,
                c.problem.shape.sq,
                c.problem.shape.sk,
                c.problem.shape.d,
                c.problem.shape.causal,
                c.problem.shape.window,
                c.problem.shape.scale,
                {},
                {}},
        q(c.q.widened()),
        k(c.k.widened()),
        v(c.v.widened()),
        sinks(c.sinks.widened()),
        dout(c.dout.widened()) {}

  void run(bool sigma, int threads) const {
    reference::attention(problem, {q, k, v, sinks, dout, {}}, {0x1p-24, 0x1p-126}, {threads, sigma});
  }

  reference::Problem problem;
  std::vector<double> q, k, v, sinks, dout;
};

}  // namespace

nlohmann::json bench_reference(const BenchOptions& options, const BenchProgress& progress) {
  const int threads = options.threads > 0
                          ? options.threads
                          : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const Case c = generate_case(parse_problem(kLine), "bench", threads);
  const WidenedCase widened(c);
  const TorchModule& torch = torch_module();
  std::vector<double> gemm, truth, truth_sigma, eager;
  for (int round = -1; round < options.rounds; ++round) {  // the first round warms up
    if (progress) progress("truth, Eigen GEMM, torch float64", (round + 1.0) / (options.rounds + 1));
    const double gemm_seconds = seconds_of_eigen_gemm(kGemmSize, kGemmCount, threads);
    const double truth_seconds = seconds_of([&] { widened.run(false, threads); });
    const double sigma_seconds = seconds_of([&] { widened.run(true, threads); });
    const double eager_seconds =
        torch.seconds_of_float64_eager != nullptr ? torch.seconds_of_float64_eager(c, threads) : 0;
    if (round < 0) continue;
    gemm.push_back(gemm_seconds);
    truth.push_back(truth_seconds);
    truth_sigma.push_back(sigma_seconds);
    if (torch.seconds_of_float64_eager != nullptr) eager.push_back(eager_seconds);
  }

  const AttentionShape& s = c.problem.shape;
  const double visible =
      0.5 * static_cast<double>(s.sq) * static_cast<double>(s.sq + 1) * static_cast<double>(s.b * s.hq);
  const double product_flops = 2 * static_cast<double>(s.d) * visible;
  const double gemm_flops = 2.0 * kGemmSize * kGemmSize * kGemmSize * kGemmCount * threads;
  const nlohmann::json spreads = {{"eigen_gemm", spread_of(gemm)},
                                  {"truth", spread_of(truth)},
                                  {"truth_with_sigma", spread_of(truth_sigma)}};
  const auto median = [&](const char* name) { return spreads[name]["median"].get<double>(); };
  const double gemm_rate = gemm_flops / median("eigen_gemm");
  nlohmann::json result;
  result["problem"] = kLine;
  result["threads"] = threads;
  result["gemm_gflops"] = gemm_rate / 1e9;
  result["gemm_share"] = kProducts * product_flops / median("truth") / gemm_rate;
  result["gemm_share_with_sigma"] =
      (kProducts + kSigmaProducts) * product_flops / median("truth_with_sigma") / gemm_rate;
  result["seconds"] = spreads;
  if (!eager.empty()) {
    result["seconds"]["torch_float64_eager"] = spread_of(eager);
    const double eager_median = result["seconds"]["torch_float64_eager"]["median"];
    result["torch_float64_speedup"] = eager_median / median("truth");
    result["torch_float64_speedup_with_sigma"] = eager_median / median("truth_with_sigma");
  } else {
    result["torch_float64_speedup"] = nullptr;
    result["torch_unavailable"] = torch.unavailable;
  }
  result["machine"] = machine_json(threads);
  return result;
}

nlohmann::json machine_json(int threads) {
  nlohmann::json machine;
  for (const auto& [name, value] : collect_run_info("", threads)) {
    if (name != "command_line") machine[name] = value;
  }
  return machine;
}

nlohmann::json bench_reference_memory(const BenchOptions& options) {
  constexpr const char* kLargeLine = "b1 hq64 hkv8 sq8192 sk8192 d64 bf16 causal seed=1";
  const Case c = generate_case(parse_problem(kLargeLine), "bench", options.threads);
  const double seconds = seconds_of([&] { compute_truth(c, options.threads); });
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return {{"problem", kLargeLine},
          {"seconds", seconds},
          {"peak_gib", static_cast<double>(usage.ru_maxrss) / (1 << 20)},
          {"machine", machine_json(options.threads)}};
}

}  // namespace sinkscope
