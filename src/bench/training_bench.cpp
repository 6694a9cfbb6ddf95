// SPDX-License-Identifier: Apache-2.0
// What a step of the spike lab costs through each attention of a scenario, and what the record of it adds.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>

#include "fmt/format.h"

#include "src/bench/bench.hpp"
#include "src/core/error.hpp"
#include "src/study/rows.hpp"
#include "src/study/watch.hpp"
#include "src/torch/module.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

constexpr int kWarmUpRounds = 3;
constexpr int kRepeats = 3;  // of what is timed alone, after the rounds

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Of a mean of differences, round by round: what slows the whole machine for a while is in both. Null for one round.
nlohmann::json standard_error(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() < 2) return nullptr;
  const double mean = mean_of(a) - mean_of(b);
  double squared = 0;
  for (std::size_t i = 0; i < a.size(); ++i) squared += (a[i] - b[i] - mean) * (a[i] - b[i] - mean);
  const auto count = static_cast<double>(a.size());
  return std::sqrt(squared / (count - 1) / count);
}

// A folder of its own among the system's temporary ones, gone afterwards with all that is in it.
class ScratchFolder {
 public:
  ScratchFolder() : path_((fs::temp_directory_path() / "sinkscope-bench-XXXXXX").string()) {
    if (mkdtemp(path_.data()) == nullptr)
      throw EnvironmentError(fmt::format("{} cannot be made, wanted a folder that can be written to", path_));
  }
  ~ScratchFolder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  std::string file(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Writes every step of a run as a study does.
class Recorder {
 public:
  Recorder(const Scenario& scenario, const RunPlan& plan)
      : shape_(shape_of(scenario.lab.model)),
        observe_every_(scenario.watching.observe_every > 0 ? scenario.watching.observe_every
                                                           : Watching{}.observe_every) {
    TrainingRun run;
    run.name = plan.name;
    run.training_path = plan.phases.back().settings.training_path;
    run.shape = shape_;
    // The file loses its name here and lives as long as the writer, so that an interrupt leaves nothing.
    const ScratchFolder folder;
    writer_.emplace(folder.file("record.h5"), RunInfo{}, std::vector<TrainingRun>{run}, false);
  }

  std::int64_t observe_every() const { return observe_every_; }
  bool observes(std::int64_t step) const { return step % observe_every_ == 0; }

  StepRow row(const lab::StepResult& result, lab::StepKind kind) {
    StepRow row = step_row(result, kind, shape_);
    row.step = result.step;
    row.z = watch_.next(kind, result.gradient_norm).z;
    return row;
  }
  void write(const StepRow& row) { writer_->add(0, row); }

 private:
  RunShape shape_;
  std::int64_t observe_every_;
  Watch watch_;
  std::optional<RunWriter> writer_;
};

struct Contestant {
  std::string name;
  lab::StepSettings settings;
  std::unique_ptr<lab::Lab> lab;
  std::unique_ptr<Recorder> recorder;  // of the one that is recorded
  std::vector<double> ms;              // of each round that counts
  int observed = 0;                    // of those

  void take_step() {
    const lab::StepResult result = lab->gradient(settings);
    const std::optional<StepRow> row =
        recorder ? std::optional(recorder->row(result, settings.kind)) : std::nullopt;
    lab->apply(settings);
    if (row) recorder->write(*row);
    lab->wait();
  }

  void take_turn(bool counts) {
    settings.observe = recorder && recorder->observes(lab->step());
    const double taken = 1e3 * seconds_of([&] { take_step(); });
    if (!counts) return;
    ms.push_back(taken);
    observed += settings.observe ? 1 : 0;
  }
};

// Every run of the scenario in the settings of its last phase, then the first again, recorded.
std::vector<Contestant> contestants_of(const Scenario& scenario, const LabOpener& open) {
  std::vector<Contestant> contestants;
  for (const RunPlan& run : scenario.runs)
    contestants.push_back({run.name, run.phases.back().settings, open(scenario.lab), nullptr, {}, 0});
  const RunPlan& first = scenario.runs.front();
  contestants.push_back({first.name + ", recorded",
                         first.phases.back().settings,
                         open(scenario.lab),
                         std::make_unique<Recorder>(scenario, first),
                         {},
                         0});
  return contestants;
}

void take_turns(std::vector<Contestant>& contestants, int rounds, const BenchProgress& progress) {
  const auto count = static_cast<int>(contestants.size());
  for (int round = 0; round < kWarmUpRounds + rounds; ++round) {
    for (int turn = 0; turn < count; ++turn) {
      Contestant& next = contestants[static_cast<std::size_t>((round + turn) % count)];
      const double done = static_cast<double>(round * count + turn) / ((kWarmUpRounds + rounds) * count);
      if (progress) progress(next.name, done);
      next.take_turn(round >= kWarmUpRounds);
    }
  }
}

// Positions that a step's forward and backward see; those that rollouts are sampled at come on top.
std::int64_t tokens_per_step(const lab::LabConfig& config, lab::StepKind kind) {
  if (!config.sorting) return config.text.batch * config.text.length;
  const lab::SortingTask& sort = config.sort;
  const std::int64_t rows = kind == lab::StepKind::kReinforce ? sort.prompts * sort.rollouts : sort.batch;
  return rows * 2 * sort.digits;
}

nlohmann::json figures_of(const Contestant& contestant, const Contestant& first,
                          const lab::LabConfig& config) {
  nlohmann::json figures = {{"name", contestant.name},
                            {"training_path", contestant.settings.training_path},
                            {"tokens_per_step", tokens_per_step(config, contestant.settings.kind)},
                            {"ms", spread_of(contestant.ms)}};
  figures["ms"]["mean"] = mean_of(contestant.ms);
  figures["ratio_of_medians"] =
      figures["ms"]["median"].get<double>() / spread_of(first.ms)["median"].get<double>();
  figures["ratio_of_means"] = mean_of(contestant.ms) / mean_of(first.ms);
  return figures;
}

nlohmann::json price_of_recording(const Contestant& recorded, const Contestant& first) {
  nlohmann::json error = standard_error(recorded.ms, first.ms);
  if (!error.is_null()) error = error.get<double>() / mean_of(first.ms);
  return {{"observe_every", recorded.recorder->observe_every()},
          {"observed", recorded.observed},
          {"price", mean_of(recorded.ms) / mean_of(first.ms) - 1},
          {"standard_error", error}};
}

// What is done now and then beside the steps, in units of one.
nlohmann::json cost_of(const std::function<void()>& body, double ms_of_step) {
  std::vector<double> ms;
  ms.reserve(kRepeats);
  for (int repeat = 0; repeat < kRepeats; ++repeat) ms.push_back(1e3 * seconds_of(body));
  const nlohmann::json spread = spread_of(ms);
  return {{"ms", spread}, {"steps", spread["median"].get<double>() / ms_of_step}, {"unavailable", ""}};
}

nlohmann::json cost_of_checkpoint(const lab::Lab& lab, double ms_of_step) {
  const ScratchFolder folder;
  const std::string file = folder.file("checkpoint");
  nlohmann::json cost = cost_of([&] { lab.save(file); }, ms_of_step);
  cost["bytes"] = fs::file_size(file);
  return cost;
}

// Exact attention holds S x S doubles, which a small GPU may have no room for.
nlohmann::json cost_of_counterfactual(lab::Lab& lab, const lab::StepSettings& settings, double ms_of_step) {
  try {
    lab.gradient(settings);
    lab.wait();
    const auto replay = [&] {
      lab.replay({settings.training_path}, settings);
      lab.wait();
    };
    return cost_of(replay, ms_of_step);
  } catch (const std::exception& error) {
    const std::string_view reason = error.what();  // libtorch's goes on with a backtrace
    return {{"ms", nullptr}, {"steps", nullptr}, {"unavailable", reason.substr(0, reason.find('\n'))}};
  }
}

}  // namespace

nlohmann::json bench_training(const Scenario& scenario, int rounds, const LabOpener& open,
                              const BenchProgress& progress) {
  torch_module();  // its version belongs to what is said of the machine
  std::vector<Contestant> contestants = contestants_of(scenario, open);
  take_turns(contestants, rounds, progress);

  nlohmann::json figures = {{"scenario", scenario.name},
                            {"backend", scenario.lab.cuda ? "cuda" : "cpu"},
                            {"machine", machine_json(scenario.lab.threads)},
                            {"parameters", contestants.front().lab->parameters()},
                            {"rounds", rounds},
                            {"warm_up_rounds", kWarmUpRounds}};
  figures["device"] = figures["machine"][scenario.lab.cuda ? "gpu" : "cpu"];
  for (const Contestant& contestant : contestants)
    figures["contestants"].push_back(figures_of(contestant, contestants.front(), scenario.lab));
  figures["recording"] = price_of_recording(contestants.back(), contestants.front());

  const Contestant first = std::move(contestants.front());
  contestants.clear();  // room for the replays
  const double ms_of_step = figures["contestants"][0]["ms"]["median"];
  if (progress) progress("checkpoint and counterfactual", 1);
  figures["checkpoint"] = cost_of_checkpoint(*first.lab, ms_of_step);
  figures["counterfactual"] = cost_of_counterfactual(*first.lab, first.settings, ms_of_step);
  return figures;
}

}  // namespace sinkscope
