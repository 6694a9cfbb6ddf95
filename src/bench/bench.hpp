// SPDX-License-Identifier: Apache-2.0
// Speed measured honestly: contestants take turns within one run, every figure with its median and spread.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "nlohmann/json.hpp"

#include "src/gate/gate.hpp"
#include "src/scenario/scenario.hpp"
#include "src/study/study.hpp"

namespace sinkscope {

struct BenchOptions {
  int threads = 0;
  int rounds = 7;
};

// Called now and then with what is about to run, and the share of the work that is done.
using BenchProgress = std::function<void(std::string_view what, double share)>;

// The truth (S 2048, 8 heads, d 64, causal) against Eigen's own double GEMM and torch's float64 eager
// autograd. Keys: gemm_gflops, gemm_share (with sigmas: gemm_share_with_sigma), torch_float64_speedup
// (..._with_sigma), seconds, machine.
nlohmann::json bench_reference(const BenchOptions& options, const BenchProgress& progress = {});

// The kernel's CPU backend (B1, 8 heads, S 4096, d 64, causal; fp32 and bf16), forward plus backward, against
// eager and ATen's CPU flash attention. Keys per format: backend and seconds of each contestant,
// speedup_over_eager, speedup_over_aten_flash.
nlohmann::json bench_kernel_on_cpu(const BenchOptions& options, const BenchProgress& progress = {});

struct GpuBenchOptions {
  std::vector<std::string> problems;     // problem lines; empty: those of default_gpu_problems()
  std::vector<std::string> contestants;  // PATH, PATH/no_sink or PATH/residual; empty: default_contestants()
  Gate gate;                             // what a timed output of a judged path must pass
  bool all_heads = false;                // check every head, not one key/value head with its query heads
  int threads = 0;
  int rounds = 20;
};
std::vector<std::string> default_gpu_problems();
std::vector<std::string> default_contestants();

// Forward and backward of paths on the GPU, each launch timed alone by the device's clock with the L2 flushed
// before it, next to the machine's own matrix and copy rates; every timed output is checked and a wrong one has
// no time. Keys: src/bench/README.md. Throws EnvironmentError where there is no GPU or no contestant runs on it.
// `finished`, if given, gets what there is after each problem.
nlohmann::json bench_kernel_on_gpu(const GpuBenchOptions& options, const BenchProgress& progress = {},
                                   const std::function<void(const nlohmann::json&)>& finished = {});

// Why bench_kernel_on_gpu() cannot work here, or empty.
std::string gpu_bench_unavailable();

// The figures of bench_kernel_on_gpu() as Markdown: the heading, and one problem.
std::string gpu_bench_heading(const nlohmann::json& figures);
std::string gpu_problem_table(const nlohmann::json& problem);

// Peak memory of the truth on one problem of S 8192, 64 query and 8 key/value heads, d 64: peak_gib, seconds.
nlohmann::json bench_reference_memory(const BenchOptions& options);

// The truth on the GPU, once: S 131072, 64 query and 8 key/value heads, d 64, causal, forward and backward. seconds
// (with the way to the device and back), device_peak_gib (all that libtorch reserved), and how far the last rows of
// two key/value heads are from the Eigen truth. Throws EnvironmentError without a GPU.
nlohmann::json bench_truth_cuda(const BenchOptions& options, const BenchProgress& progress = {});

// A training step of the lab (gradient, optimizer, all done) through the attention of each run of a scenario, whose `lab`
// says the device and the threads. Each run has a lab of its own, all with the same first weights (the scenario's start
// is not trained), and the settings of its last phase; they take turns, one step each in every round, the first of a
// round another from round to round, and 3 rounds before those that count. One contestant more, "RUN, recorded", is the
// first run with its heads observed and its rows written as a study's, within the time. Then, alone, the price of a
// sampled step's counterfactual and of a checkpoint. Milliseconds; keys: src/bench/README.md. Throws EnvironmentError
// where there is no lab, InputError for a scenario that cannot be trained here.
nlohmann::json bench_training(const Scenario& scenario, int rounds, const LabOpener& open,
                              const BenchProgress& progress = {});

// The figures of bench_training() as Markdown.
std::string training_table(const nlohmann::json& figures);

// The machine and the libraries, as a record has them.
nlohmann::json machine_json(int threads);

// What a call takes by the host's clock.
double seconds_of(const std::function<void()>& body);

// median, q1, q3 (quartiles), min, max and rounds of repeats, of which there must be one.
nlohmann::json spread_of(std::vector<double> values);

// "1.234 (1.2 to 1.3)": median and quartiles, 4 digits.
std::string spread_text(const nlohmann::json& spread);

// Seconds of `count` n x n double products by Eigen on each of `threads` threads at once.
double seconds_of_eigen_gemm(int n, int count, int threads);

}  // namespace sinkscope
