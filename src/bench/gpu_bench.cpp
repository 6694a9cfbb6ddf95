// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>

#include "fmt/format.h"

#include "src/bench/bench.hpp"
#include "src/bench/check.hpp"
#include "src/bench/device_timer.hpp"
#include "src/bench/work.hpp"
#include "src/capture/capture.hpp"
#include "src/compare/truth_kind.hpp"
#include "src/core/error.hpp"
#include "src/paths/sink_kernel_cuda.hpp"
#include "src/paths/table.hpp"
#include "src/torch/module.hpp"

namespace sinkscope {
namespace {

constexpr int kWarmUpRounds = 3;
constexpr double kSlowSeconds = 0.1;  // of both passes: a contestant that takes longer gets kSlowRounds
constexpr int kSlowRounds = 3;
constexpr double kTooSlowSeconds = 0.5;  // one that takes this long is not timed
constexpr int kGemmSize = 8192;
constexpr double kGemmFlops = 2.0 * kGemmSize * kGemmSize * kGemmSize;
constexpr std::string_view kNoSink = "/no_sink";
constexpr std::string_view kResidual = "/residual";
constexpr std::string_view kSinkless =
    "flash_attention_2";  // computes no sink: it gets and answers that problem

// One pass of one contestant, or one of the machine's own rates.
using Seconds = std::vector<double>;

struct Contestant {
  std::string name;  // PATH, PATH/no_sink or PATH/residual
  std::string path;
  bool sink = true;
  bool residual = false;

  PreparedPath prepared;
  std::string unavailable;  // why it was not timed, or empty
  OutputCheck check;
  bool slow = false;
  Seconds forward, backward;
};

Contestant parse_contestant(const std::string& name) {
  Contestant contestant;
  contestant.name = name;
  contestant.path = name.substr(0, name.find('/'));
  const std::string_view variant = std::string_view(name).substr(contestant.path.size());
  if (!variant.empty() && variant != kNoSink && variant != kResidual)
    throw InputError(fmt::format("contestant '{}': wanted PATH, PATH{} or PATH{}", name, kNoSink, kResidual));
  contestant.residual = variant == kResidual;
  contestant.sink = variant != kNoSink && contestant.path != kSinkless;
  return contestant;
}

// The quickest truth that is here.
TruthKind truth_kind() {
  return unavailable(TruthKind::kCuda).empty() ? TruthKind::kCuda : TruthKind::kEigen;
}

// A problem with and without its sink; the truths of the heads to check are worked out when first asked for.
class Question {
 public:
  Question(const std::string& line, std::int64_t index, const GpuBenchOptions& options)
      : threads_(options.threads),
        with_sink_(make_case(parse_problem(line), "bench", options.threads)),
        without_(with_sink_) {
    without_.problem.sink = SinkKind::kNone;
    without_.sinks = {};
    const std::int64_t hkv = with_sink_.problem.shape.hkv;
    heads_ = options.all_heads ? KvHeads{0, hkv} : KvHeads{index % hkv, 1};
  }

  Case& of(const Contestant& contestant) { return contestant.sink ? with_sink_ : without_; }
  KvHeads heads() const { return heads_; }
  const Problem& problem() const { return with_sink_.problem; }

  const Truth& truth(const Contestant& contestant) {
    std::optional<Truth>& truth = contestant.sink ? truth_with_sink_ : truth_without_;
    if (!truth) truth = truth_of(part_of(of(contestant), heads_), truth_kind(), threads_);
    return *truth;
  }

 private:
  int threads_;
  Case with_sink_, without_;
  KvHeads heads_;
  std::optional<Truth> truth_with_sink_, truth_without_;
};

// Runs both passes twice, for the first time that allocates and loads, and sees whether it is slow.
void warm_up(Contestant& contestant, DeviceTimer& timer) {
  double seconds = 0;
  for (const auto& pass : {contestant.prepared.forward, contestant.prepared.backward}) {
    if (!pass) continue;
    timer.warm_up(pass);
    seconds += timer.seconds_of(pass);
  }
  contestant.slow = seconds > kSlowSeconds;
  if (seconds > kTooSlowSeconds)
    throw std::runtime_error(
        fmt::format("takes {:.2f} s, over {} s: too slow to be timed", seconds, kTooSlowSeconds));
}

// Lays the case out on the GPU and runs it once, or says why not.
void prepare(Contestant& contestant, Question& question, DeviceTimer& timer) {
  Case& c = question.of(contestant);
  const Path path = find_path(contestant.path, c);
  if (!path.prepare) {
    contestant.unavailable = path.unsupported(c).value_or("has no GPU backend here");
    return;
  }
  if (const auto reason = path.unsupported(c)) {
    contestant.unavailable = *reason;
    return;
  }
  const bool residual = c.problem.residual;
  c.problem.residual = residual || contestant.residual;
  try {
    contestant.prepared = path.prepare(c);
    warm_up(contestant, timer);
  } catch (const std::exception& e) {
    contestant.prepared = {};
    contestant.unavailable = e.what();
  }
  c.problem.residual = residual;
}

// The machine's own rates, measured in the same rounds.
struct Rates {
  std::function<void()> gemm;  // null without libtorch on the GPU
  Seconds gemm_seconds, copy_seconds;
};

void run_round(std::vector<Contestant>& contestants, Rates& rates, DeviceTimer& timer, int round) {
  const auto time = [&](const std::function<void()>& enqueue, Seconds& into) {
    const double seconds = timer.seconds_of(enqueue);
    if (round >= 0) into.push_back(seconds);
  };
  if (rates.gemm) time(rates.gemm, rates.gemm_seconds);
  time([&] { timer.copy(); }, rates.copy_seconds);
  for (std::size_t i = 0; i < contestants.size(); ++i) {
    // Each round starts with another one, so that nobody always runs after the same neighbour.
    Contestant& contestant =
        contestants[(i + static_cast<std::size_t>(round + kWarmUpRounds)) % contestants.size()];
    if (!contestant.unavailable.empty()) continue;
    if (contestant.slow && (round < 0 || round >= kSlowRounds)) continue;
    time(contestant.prepared.forward, contestant.forward);
    if (contestant.prepared.backward) time(contestant.prepared.backward, contestant.backward);
  }
}

void check(Contestant& contestant, Question& question, const GpuBenchOptions& options) {
  const bool judged = is_judged(options.gate, contestant.path, contestant.prepared.backend);
  contestant.check = check_outputs(contestant.prepared.outputs(), question.of(contestant), question.heads(),
                                   question.truth(contestant), options.gate, judged, options.threads);
}

double median_of(const Seconds& seconds) {
  return spread_of(seconds)["median"];
}

nlohmann::json ratios(const Seconds& numerator, const Seconds& denominator, double offset = 0) {
  if (numerator.empty() || denominator.empty()) return nullptr;
  Seconds values;
  const std::size_t rounds = std::min(numerator.size(), denominator.size());  // slow ones have fewer
  for (std::size_t i = 0; i < rounds; ++i) values.push_back(numerator[i] / denominator[i] + offset);
  return spread_of(values);
}

nlohmann::json pass_figures(const Seconds& seconds, const Work& work, const Rates& rates,
                            const Seconds& peer) {
  if (seconds.empty()) return nullptr;
  Seconds milliseconds = seconds;
  for (double& value : milliseconds) value *= 1e3;
  const double median = median_of(seconds);
  nlohmann::json figures;
  figures["ms"] = spread_of(milliseconds);
  figures["tflops"] = work.flops / median / 1e12;
  figures["gemm_share"] = nullptr;
  if (!rates.gemm_seconds.empty())
    figures["gemm_share"] = work.flops / median / (kGemmFlops / median_of(rates.gemm_seconds));
  const double copy_rate = 2.0 * DeviceTimer::kCopyBytes / median_of(rates.copy_seconds);
  figures["copy_share"] = work.bytes / median / copy_rate;
  figures["speedup_over_flash_attention_2"] = ratios(peer, seconds);
  return figures;
}

const Contestant* find_timed(const std::vector<Contestant>& contestants, std::string_view name) {
  const auto found = std::find_if(contestants.begin(), contestants.end(),
                                  [&](const Contestant& c) { return c.name == name; });
  const bool timed = found != contestants.end() && found->unavailable.empty() && found->check.wrong.empty();
  return timed ? &*found : nullptr;
}

// What `dear` takes more than `cheap`, as a share of it.
nlohmann::json price(const std::vector<Contestant>& contestants, std::string_view dear,
                     std::string_view cheap) {
  const Contestant* const a = find_timed(contestants, dear);
  const Contestant* const b = find_timed(contestants, cheap);
  if (a == nullptr || b == nullptr) return nullptr;
  return {{"forward", ratios(a->forward, b->forward, -1)},
          {"backward", ratios(a->backward, b->backward, -1)}};
}

nlohmann::json contestant_figures(const Contestant& contestant, const Problem& problem, const Rates& rates,
                                  const Contestant* peer) {
  nlohmann::json figures = {{"name", contestant.name}, {"sink", contestant.sink}};
  figures["backend"] = contestant.prepared.backend;
  figures["unavailable"] = contestant.unavailable;
  figures["wrong"] = contestant.check.wrong;
  figures["rel_l2"] = contestant.check.rel_l2;
  const bool has_time = contestant.unavailable.empty() && contestant.check.wrong.empty();
  Problem own = problem;
  own.residual = own.residual || contestant.residual;
  const Seconds none;
  for (const bool forward : {true, false}) {
    const Seconds& seconds = forward ? contestant.forward : contestant.backward;
    const Seconds& of_peer = peer == nullptr ? none : forward ? peer->forward : peer->backward;
    figures[forward ? "forward" : "backward"] = pass_figures(
        has_time ? seconds : none, forward ? forward_work(own) : backward_work(own), rates, of_peer);
  }
  return figures;
}

std::string checked_text(const Question& question) {
  const char* const truth = truth_kind() == TruthKind::kCuda ? "GPU's" : "Eigen";
  const std::int64_t all = question.problem().shape.hkv;
  if (question.heads().count == all) return fmt::format("every head against the {} truth", truth);
  return fmt::format("kv head {} of {} against the {} truth, the rest for finiteness", question.heads().first,
                     all, truth);
}

nlohmann::json problem_figures(const std::string& line, Question& question, const Rates& rates,
                               const std::vector<Contestant>& contestants) {
  nlohmann::json figures;
  figures["problem"] = line;
  figures["visible_pairs"] = visible_pairs(question.problem().shape);
  figures["checked"] = checked_text(question);
  figures["gemm_tflops"] = rates.gemm_seconds.empty()
                               ? nlohmann::json()
                               : nlohmann::json(kGemmFlops / median_of(rates.gemm_seconds) / 1e12);
  figures["copy_tbytes"] = 2.0 * DeviceTimer::kCopyBytes / median_of(rates.copy_seconds) / 1e12;
  const Contestant* const peer = find_timed(contestants, kSinkless);
  for (const Contestant& contestant : contestants)
    figures["contestants"].push_back(contestant_figures(contestant, question.problem(), rates, peer));
  figures["price_of_sink"] = price(contestants, "sink_kernel", "sink_kernel/no_sink");
  figures["price_of_residual"] = price(contestants, "sink_kernel/residual", "sink_kernel");
  return figures;
}

nlohmann::json time_problem(const std::string& line, Question& question, const GpuBenchOptions& options,
                            Rates rates, DeviceTimer& timer, const BenchProgress& report) {
  std::vector<Contestant> contestants;
  for (const std::string& name : options.contestants.empty() ? default_contestants() : options.contestants)
    contestants.push_back(parse_contestant(name));
  for (Contestant& contestant : contestants) prepare(contestant, question, timer);
  for (int round = -kWarmUpRounds; round < options.rounds; ++round) {
    const int done = std::max(0, round);
    report(fmt::format("round {}", done + 1), 0.3 + 0.4 * done / options.rounds);
    run_round(contestants, rates, timer, round);
  }
  for (Contestant& contestant : contestants) {
    report(fmt::format("check of {}", contestant.name), 0.7);
    if (contestant.unavailable.empty()) check(contestant, question, options);
  }
  return problem_figures(line, question, rates, contestants);
}

}  // namespace

std::vector<std::string> default_gpu_problems() {
  // Those of the longest context last: they take the most time.
  return {
      "b1 hq64 hkv8 sq4096 sk4096 d64 bf16 causal",      "b1 hq64 hkv8 sq8192 sk8192 d64 bf16 causal",
      "b1 hq64 hkv8 sq16384 sk16384 d64 bf16 causal",    "b4 hq64 hkv8 sq2048 sk2048 d64 bf16 causal",
      "b1 hq64 hkv8 sq4096 sk4096 d64 bf16 causal w128", "b1 hq64 hkv8 sq16384 sk16384 d64 bf16 causal w128",
      "b4 hq64 hkv8 sq2048 sk2048 d64 bf16 causal w128", "b1 hq32 hkv8 sq8192 sk8192 d128 bf16 causal",
      "b1 hq32 hkv8 sq16384 sk16384 d128 bf16 causal",   "b1 hq64 hkv8 sq32768 sk32768 d64 bf16 causal w128",
      "b1 hq64 hkv8 sq32768 sk32768 d64 bf16 causal"};
}

std::vector<std::string> default_contestants() {
  return {"sink_kernel", "sink_kernel/no_sink", "sink_kernel/residual", "flash_attention_2", "eager"};
}

std::string gpu_bench_unavailable() {
  if (!cuda_kernel_built()) return "this build has no CUDA backend";
  return cuda_kernel_device() ? "" : "no GPU of compute capability 9.0 is here";
}

nlohmann::json bench_kernel_on_gpu(const GpuBenchOptions& options, const BenchProgress& progress,
                                   const std::function<void(const nlohmann::json&)>& finished) {
  if (const std::string reason = gpu_bench_unavailable(); !reason.empty()) throw EnvironmentError(reason);
  const std::vector<std::string> lines = options.problems.empty() ? default_gpu_problems() : options.problems;
  for (const std::string& line : lines) parse_problem(line);  // refused before the work

  DeviceTimer timer;
  const TorchModule& torch = torch_module();
  const std::function<void()> product =
      torch.cuda_gemm != nullptr ? torch.cuda_gemm(kGemmSize) : std::function<void()>();
  if (product) timer.warm_up(product);
  nlohmann::json figures = {{"device", *cuda_kernel_device()},
                            {"rounds", options.rounds},
                            {"l2_mib", timer.l2_bytes() / 1048576.0},
                            {"machine", machine_json(options.threads)}};
  for (std::size_t index = 0; index < lines.size(); ++index) {
    const auto report = [&](std::string_view what, double share) {
      if (progress)
        progress(fmt::format("{}: {}", lines[index], what),
                 (static_cast<double>(index) + share) / static_cast<double>(lines.size()));
    };
    report("inputs", 0);
    Question question(lines[index], static_cast<std::int64_t>(index), options);
    figures["problems"].push_back(
        time_problem(lines[index], question, options, Rates{product, {}, {}}, timer, report));
    figures["late_launches"] = timer.late_launches();
    if (finished) finished(figures);
  }
  return figures;
}

}  // namespace sinkscope
