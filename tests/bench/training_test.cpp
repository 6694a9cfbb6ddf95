// SPDX-License-Identifier: Apache-2.0
// bench training: who takes turns, what is counted, and the words of it.
#include <stdexcept>

#include "gtest/gtest.h"

#include "src/bench/bench.hpp"
#include "src/core/error.hpp"
#include "tests/study/fake_lab.hpp"

namespace sinkscope {
namespace {

constexpr int kWarmUp = 3;

const char* const kScenario =
    "summary = 'x'\n[model]\nlayers = 2\nhq = 2\nhkv = 1\n[task]\nkind = 'sorting'\ndigits = 3\nbatch = 5\n"
    "[start]\nphase = [{ steps = 4, training_path = 'exact' }]\n"
    "[[run]]\nname = 'right'\nphase = [{ steps = 2, training_path = 'exact' }, { steps = 2, training_path = "
    "'eager' }]\n"
    "[[run]]\nname = 'wrong'\nphase = [{ steps = 2, training_path = 'flash' }]\n"
    "[record]\nobserve_every = 0\n";

// What the labs of a bench are asked for, in its order: "2 flash" is a step of the third lab, "2 observed" one with heads.
struct Log {
  std::vector<std::string> steps;
  bool has_room = true;  // for exact attention
};

class LoggingLab : public FakeLab {
 public:
  LoggingLab(FakeWorld& world, Log& log) : FakeLab(world), log_(log), number_(world.opened - 1) {}

  lab::StepResult gradient(const lab::StepSettings& settings) override {
    begun_ = std::to_string(number_) + " " + (settings.observe ? "observed" : settings.training_path);
    return FakeLab::gradient(settings);
  }
  // A step that was applied and waited for.
  void wait() override {
    if (step() > waited_) log_.steps.push_back(begun_);
    waited_ = step();
  }
  std::vector<lab::ReplayedPath> replay(const std::vector<std::string>& paths,
                                        const lab::StepSettings& settings) override {
    if (!log_.has_room) throw std::runtime_error("out of memory, wanted 2 GiB\nbacktrace");
    return FakeLab::replay(paths, settings);
  }

 private:
  Log& log_;
  int number_;
  std::string begun_;
  std::int64_t waited_ = 0;
};

class TrainingBench : public testing::Test {
 protected:
  nlohmann::json bench(int rounds) {
    return bench_training(parse_scenario(kScenario, "s"), rounds,
                          [&](const lab::LabConfig&) { return std::make_unique<LoggingLab>(world_, log_); });
  }
  FakeWorld world_;
  Log log_;
};

TEST_F(TrainingBench, LabsTakeTurnsOfOneStepAndEachRoundHasAnotherFirst) {
  bench(1);
  EXPECT_EQ(world_.opened, 3) << "two runs, and the first recorded";
  const std::vector<std::string> wanted = {"0 eager", "1 flash", "2 observed",  //
                                           "1 flash", "2 eager", "0 eager",     //
                                           "2 eager", "0 eager", "1 flash",     //
                                           "0 eager", "1 flash", "2 eager"};
  EXPECT_EQ(log_.steps, wanted);
}

TEST_F(TrainingBench, WarmUpDoesNotCountAndOneStepInFiveIsObserved) {
  const nlohmann::json figures = bench(10);
  EXPECT_EQ(log_.steps.size(), 3U * (kWarmUp + 10));
  for (const nlohmann::json& contestant : figures["contestants"]) EXPECT_EQ(contestant["ms"]["rounds"], 10);
  EXPECT_EQ(figures["recording"]["observe_every"], 5) << "where the scenario has 0";
  EXPECT_EQ(figures["recording"]["observed"], 2) << "steps 5 and 10 of 3 to 12";
  EXPECT_EQ(figures["contestants"][0]["tokens_per_step"], 5 * 2 * 3);
}

TEST_F(TrainingBench, ACounterfactualThatDoesNotFitHasAReasonAndTheRestItsFigures) {
  log_.has_room = false;
  const nlohmann::json figures = bench(1);
  EXPECT_TRUE(figures["counterfactual"]["ms"].is_null());
  EXPECT_EQ(figures["counterfactual"]["unavailable"], "out of memory, wanted 2 GiB");
  EXPECT_EQ(figures["checkpoint"]["bytes"], 1) << "the fake's step 4 as text";
  EXPECT_NE(training_table(figures).find(
                "A sampled step's counterfactual has no time: out of memory, wanted 2 GiB.\n"),
            std::string::npos);
}

TEST_F(TrainingBench, TheCounterfactualIsOfTheFirstRunsPathThreeTimes) {
  bench(1);
  EXPECT_EQ(world_.replayed, std::vector<std::string>(3, "eager"));
}

TEST(TrainingBenchOfALab, SmallTextHasEveryFigure) {
  if (!lab::why_no_lab().empty()) GTEST_SKIP() << lab::why_no_lab();
  const nlohmann::json figures =
      bench_training(read_scenario("datasets/scenarios/small_text.toml"), 2, lab::open_lab);
  EXPECT_EQ(figures["scenario"], "small_text");
  EXPECT_EQ(figures["backend"], "cpu");
  EXPECT_EQ(figures["device"], figures["machine"]["cpu"]);
  EXPECT_NE(figures["machine"]["torch"], "none");
  EXPECT_EQ(figures["rounds"], 2);
  EXPECT_GT(figures["parameters"], 1000);
  std::vector<std::string> names;
  for (const nlohmann::json& contestant : figures["contestants"]) {
    names.push_back(contestant["name"]);
    EXPECT_EQ(contestant["ms"]["rounds"], 2);
    EXPECT_GE(contestant["ms"]["mean"], contestant["ms"]["min"]);
    EXPECT_LE(contestant["ms"]["mean"], contestant["ms"]["max"]);
    EXPECT_EQ(contestant["tokens_per_step"], 2 * 32);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"healthy", "without_sinks", "healthy, recorded"}));
  EXPECT_EQ(figures["contestants"][0]["ratio_of_medians"], 1);
  EXPECT_EQ(figures["contestants"][0]["ratio_of_means"], 1);
  EXPECT_GT(figures["recording"]["standard_error"], 0);
  EXPECT_GT(figures["checkpoint"]["bytes"], 12 * figures["parameters"].get<double>());
  for (const char* cost : {"checkpoint", "counterfactual"}) EXPECT_GT(figures[cost]["steps"], 0) << cost;
}

nlohmann::json contestant(const char* name, std::vector<double> ms, double ratio) {
  nlohmann::json spread = spread_of(std::move(ms));
  spread["mean"] = 2.5;
  return {{"name", name},
          {"ms", spread},
          {"tokens_per_step", 8192},
          {"ratio_of_medians", ratio},
          {"ratio_of_means", 1.25}};
}

nlohmann::json some_figures() {
  return {{"scenario", "step_speed"},
          {"device", "NVIDIA H100"},
          {"backend", "cuda"},
          {"rounds", 20},
          {"parameters", 71'234'567},
          {"contestants", {contestant("kernel", {2}, 1), contestant("kernel, recorded", {1, 2, 3}, 1.0625)}},
          {"recording", {{"observe_every", 5}, {"observed", 4}, {"price", 0.25}, {"standard_error", 0.01}}},
          {"counterfactual", {{"ms", spread_of({6})}, {"steps", 3}, {"unavailable", ""}}},
          {"checkpoint",
           {{"ms", spread_of({500})}, {"steps", 250}, {"unavailable", ""}, {"bytes", 850'000'000}}}};
}

TEST(TrainingTable, HasARowForEachContestantAndASentenceForEachPrice) {
  EXPECT_EQ(
      training_table(some_figures()),
      "## step_speed on NVIDIA H100 (cuda), 20 rounds\n\n"
      "71.23 million parameters, 8192 tokens a step.\n\n"
      "| | ms a step, median (quartiles) | mean | medians against kernel | means against kernel |\n"
      "|---|---|---|---|---|\n"
      "| kernel | 2 (2 to 2) | 2.5 | 1.000 x | 1.250 x |\n"
      "| kernel, recorded | 2 (1.5 to 2.5) | 2.5 | 1.062 x | 1.250 x |\n\n"
      "Recording, with the heads observed in 4 of 20 steps (one in 5), changes the mean step of kernel by "
      "+25.0 % (standard error 1.0 %).\n"
      "A sampled step's counterfactual takes 6 ms, 3.00 median steps of kernel.\n"
      "A checkpoint of 850.0 MB takes 500 ms, 250.00 median steps of kernel.\n");
}

TEST(TrainingTable, OneRoundHasNoStandardError) {
  nlohmann::json figures = some_figures();
  figures["recording"]["standard_error"] = nullptr;
  EXPECT_NE(training_table(figures).find("by +25.0 %.\n"), std::string::npos);
}

}  // namespace
}  // namespace sinkscope
