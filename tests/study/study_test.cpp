// SPDX-License-Identifier: Apache-2.0
// The driver, on a lab whose gradients are known: what is recorded, explained and resumed.
#include "src/study/study.hpp"

#include <cmath>
#include <fstream>

#include "gtest/gtest.h"

#include "src/core/error.hpp"
#include "src/study/blocks.hpp"
#include "tests/study/fake_lab.hpp"
#include "tests/temporary_folder.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

const char* const kScenario =
    "summary = 'x'\n[model]\nlayers = 2\nhq = 2\nhkv = 1\n[task]\nkind = 'sorting'\n"
    "[start]\nphase = [{ steps = 24, training_path = 'exact' }]\n"
    "[[run]]\nname = 'right'\nphase = [{ steps = 12, training_path = 'eager_fp32' }]\n"
    "[[run]]\nname = 'wrong'\nphase = [{ steps = 8, training_path = 'flash' }, { steps = 4, kind = "
    "'reinforce' }]\n"
    "[record]\nexact_every = 5\ncheckpoint_every = 4\nexplained = 1\npaths = ['flash']\n";

class Study : public TemporaryFolder {
 protected:
  void SetUp() override {
    TemporaryFolder::SetUp();
    options_.output = path("run.h5");
    options_.gate = read_gate("reports/gates/default.toml");
    // Of the path without sinks, and of the same mistake planted in exact attention but for a little.
    world_.extra2 = [](const std::string& name, std::int64_t step) {
      if (step != 27) return 0.0;
      return name == "flash" ? 144.0 : name == "fault:sink_ignored:exact" ? 132.0 : 0.0;
    };
  }
  RunRecord run() {
    return run_study(scenario_, options_, {{"version", "1"}},
                     [&](const lab::LabConfig&) { return std::make_unique<FakeLab>(world_); });
  }

  Scenario scenario_ = parse_scenario(kScenario, "s");
  StudyOptions options_;
  FakeWorld world_;
};

TEST_F(Study, RunsGoOnFromTheStartAndAreRecorded) {
  const RunRecord record = run();
  EXPECT_TRUE(record.complete);
  EXPECT_EQ(record.attributes.at("scenario"), kScenario);
  ASSERT_EQ(record.runs.size(), 3U);
  EXPECT_EQ(record.runs[0].name, "start");
  EXPECT_EQ(record.runs[0].steps.size(), 24U);
  const TrainingRun& right = record.runs[1];
  ASSERT_EQ(right.steps.size(), 12U);
  EXPECT_EQ(right.steps[0].step, 0);
  EXPECT_DOUBLE_EQ(right.steps[0].loss, 1.0 / 25) << "after the 24 steps of the start";
  EXPECT_TRUE(std::isnan(right.steps[0].reward));
  EXPECT_NEAR(sum(right.steps[0].norm2), std::pow(right.steps[0].gradient_norm, 2), 1e-9);
  EXPECT_EQ(right.steps[0].sink_mass.at(3), 0.5);
  EXPECT_EQ(record.runs[2].steps[7].phase, 0);
  EXPECT_EQ(record.runs[2].steps[8].phase, 1);
  EXPECT_EQ(record.runs[2].steps[8].reward, 1.5);
  EXPECT_EQ(files(), 2) << "the record and the captures of its spike; no checkpoints are left";
}

TEST_F(Study, AnotherSeedIsSaidAndNotGoneOnWith) {
  EXPECT_EQ(run().attributes.at("seed"), "0");
  options_.output = path("other.h5");
  scenario_.lab.model.seed = 7;
  world_.dies_after = 30;
  EXPECT_THROW(run(), std::runtime_error);
  options_.resume = true;
  scenario_.lab.model.seed = 8;
  EXPECT_THROW(run(), InputError);
  scenario_.lab.model.seed = 7;
  world_.dies_after = -1;
  EXPECT_EQ(run().attributes.at("seed"), "7");
}

TEST_F(Study, SampledStepsHaveCounterfactuals) {
  const TrainingRun right = run().runs[1];
  std::vector<std::int64_t> steps;
  for (const ReplayRow& row : right.replays) {
    if (row.path == "exact") steps.push_back(row.step);
  }
  EXPECT_EQ(steps, (std::vector<std::int64_t>{0, 5, 10, 11})) << "every fifth and the last";
  EXPECT_EQ(right.replays[1].path, "eager_fp32");
  EXPECT_EQ(right.replays[2].path, "flash");
}

TEST_F(Study, ASpikeIsCapturedAndExplained) {
  const TrainingRun wrong = run().runs[2];
  ASSERT_EQ(wrong.spikes.size(), 1U);
  const SpikeRow& spike = wrong.spikes[0];
  EXPECT_EQ(spike.step, 3);
  EXPECT_GT(spike.z, 6) << "judged by the steps of the start";
  EXPECT_NEAR(spike.fraction, 1, 1e-9);
  EXPECT_NEAR(spike.share.q[2], 1, 1e-9) << "layer 1 head 0";
  EXPECT_NEAR(sum(spike.share), spike.fraction, 1e-12);
  EXPECT_EQ(spike.verdict, "removed");
  EXPECT_TRUE(fs::exists(folder_ / spike.capture)) << spike.capture;
  EXPECT_TRUE(fs::exists(folder_ / "run_spikes/wrong_step3_layer1.safetensors"));
  ASSERT_EQ(wrong.causes.size(), 2U);
  EXPECT_EQ(wrong.causes[0].cause, "sink_ignored");
  EXPECT_NEAR(wrong.causes[0].share, 132.0 / 144, 1e-9);
  EXPECT_EQ(wrong.causes[1].cause, "rounding and rest");
  EXPECT_NEAR(wrong.causes[1].share, 12.0 / 144, 1e-9);
}

TEST_F(Study, ASpikeOfExactAttentionIsNotAttention) {
  world_.extra2 = [](const std::string&, std::int64_t) { return 0.0; };
  world_.exact2 = [](std::int64_t step) { return step == 27 ? 100.0 : 1.0; };
  const TrainingRun wrong = run().runs[2];
  ASSERT_EQ(wrong.spikes.size(), 1U);
  EXPECT_EQ(wrong.spikes[0].verdict, "not attention");
  EXPECT_NEAR(wrong.spikes[0].fraction, 0, 1e-12);
}

TEST_F(Study, AnInterruptedStudyGoesOnFromItsCheckpoint) {
  const RunRecord whole = run();
  fs::remove_all(folder_);
  fs::create_directories(folder_);
  world_.dies_after = 24 + 6;
  EXPECT_THROW(run(), std::runtime_error);
  EXPECT_FALSE(fs::exists(options_.output));
  EXPECT_THROW(run(), InputError) << "an unfinished record is not replaced without a word";

  world_.dies_after = 24 + 12 + 12 - 28;  // the start's 24 and 4 of the first run need not be taken again
  options_.resume = true;
  const RunRecord resumed = run();
  ASSERT_EQ(resumed.runs.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    ASSERT_EQ(resumed.runs[i].steps.size(), whole.runs[i].steps.size());
    EXPECT_EQ(resumed.runs[i].replays.size(), whole.runs[i].replays.size());
    EXPECT_EQ(resumed.runs[i].spikes.size(), whole.runs[i].spikes.size());
    for (std::size_t step = 0; step < whole.runs[i].steps.size(); ++step) {
      EXPECT_EQ(resumed.runs[i].steps[step].loss, whole.runs[i].steps[step].loss);
      if (!std::isnan(whole.runs[i].steps[step].z)) {
        EXPECT_EQ(resumed.runs[i].steps[step].z, whole.runs[i].steps[step].z);
      }
    }
  }
}

// A machine that goes down may keep a checkpoint and lose rows before it, or have one of a study that was overwritten.
TEST_F(Study, ACheckpointThatIsAheadOfTheRowsIsNotGoneOnFrom) {
  const RunRecord whole = run();
  for (const std::string name : {"start.24", "right.9"}) {
    SCOPED_TRACE(name);
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    options_.resume = false;
    world_.dies_after = name == "start.24" ? 10 : 24 + 6;
    EXPECT_THROW(run(), std::runtime_error);
    std::ofstream(options_.output + ".state/" + name) << name.substr(name.find('.') + 1);
    options_.resume = true;
    const RunRecord resumed = run();
    for (std::size_t i = 0; i < 3; ++i) {
      ASSERT_EQ(resumed.runs[i].steps.size(), whole.runs[i].steps.size());
      for (std::size_t step = 0; step < whole.runs[i].steps.size(); ++step)
        ASSERT_EQ(resumed.runs[i].steps[step].loss, whole.runs[i].steps[step].loss) << i << " " << step;
    }
  }
}

TEST_F(Study, ARunThatWasCutGoesOnWithAllOfItsPhases) {
  options_.runs = {"wrong"};
  options_.steps = 6;
  world_.dies_after = 24 + 5;
  EXPECT_THROW(run(), std::runtime_error);
  options_.resume = true;
  options_.steps = 0;
  const RunRecord record = run();
  ASSERT_EQ(record.runs[1].steps.size(), 12U);
  EXPECT_EQ(record.runs[1].training_path, "exact")
      << "of the last phase, which the first time had been cut off";
  EXPECT_EQ(record.runs[1].rollout_path, "exact");
}

TEST_F(Study, StepsOfARunThatIsNotAskedForAreNotDropped) {
  world_.dies_after = 24 + 12 + 2;
  EXPECT_THROW(run(), std::runtime_error);
  options_.resume = true;
  options_.runs = {"wrong"};
  try {
    run();
    ADD_FAILURE() << "the steps of 'right' were dropped";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("'right'"), std::string::npos) << error.what();
  }
  EXPECT_EQ(read_run_record(options_.output + ".partial").runs[1].steps.size(), 12U);
}

TEST_F(Study, WhatCannotBePlantedIsSaidAndWhatBreaksIsNotHidden) {
  world_.refuses = [](const std::string& path) {
    if (path == "fault:sink_ignored:exact") throw InputError("not in this layer");
  };
  const TrainingRun wrong = run().runs[2];
  ASSERT_EQ(wrong.causes.size(), 1U);
  EXPECT_EQ(wrong.causes[0].cause, "rounding and rest (sink_ignored not planted)");
  EXPECT_NEAR(wrong.causes[0].share, 1, 1e-9);
  world_.refuses = [](const std::string& path) {
    if (path == "fault:sink_ignored:exact") throw EnvironmentError("out of memory");
  };
  options_.overwrite = true;
  EXPECT_THROW(run(), EnvironmentError);
}

TEST_F(Study, WhatNeverTookAStepIsNotInTheWay) {
  const auto open = [](const lab::LabConfig&) -> std::unique_ptr<lab::Lab> {
    throw InputError("model: no such shape");
  };
  EXPECT_THROW(run_study(scenario_, options_, {}, open), InputError);
  EXPECT_TRUE(fs::exists(options_.output + ".partial"));
  EXPECT_TRUE(run().complete);
}

TEST_F(Study, ALongNameOfTheRecordIsNoError) {
  options_.output = path(std::string(200, 'n') + ".h5");
  EXPECT_TRUE(fs::exists(folder_ / run().runs[2].spikes.at(0).capture));
}

TEST_F(Study, CheckpointsComeEverySoManyStepsAndAtTheEndOfARun) {
  run();
  EXPECT_EQ(world_.saved, 24 / 4 + 12 / 4 + 12 / 4 - 1) << "nothing goes on from the last end";
  world_.saved = 0;
  scenario_.watching.checkpoint_every = 0;
  options_.overwrite = true;
  run();
  EXPECT_EQ(world_.saved, 2) << "at the end of the start and of the first run";
}

TEST_F(Study, AnotherScenarioIsNotGoneOnWith) {
  world_.dies_after = 3;
  EXPECT_THROW(run(), std::runtime_error);
  options_.resume = true;
  scenario_.toml += "# changed";
  EXPECT_THROW(run(), InputError);
}

TEST_F(Study, RunsCanBeChosenAndCut) {
  options_.runs = {"wrong"};
  options_.steps = 10;
  const RunRecord record = run();
  ASSERT_EQ(record.runs.size(), 2U);
  EXPECT_EQ(record.runs[1].name, "wrong");
  EXPECT_EQ(record.runs[1].steps.size(), 10U);
  options_.runs = {"other"};
  EXPECT_THROW(run(), InputError);
}

TEST_F(Study, ANormThatIsNotFiniteIsRecorded) {
  world_.exact2 = [](std::int64_t step) { return step == 26 ? std::nan("") : 1.0; };
  const TrainingRun wrong = run().runs[2];
  ASSERT_GE(wrong.spikes.size(), 1U);
  EXPECT_EQ(wrong.spikes[0].step, 2);
  EXPECT_EQ(wrong.spikes[0].verdict, "not finite");
}

}  // namespace
}  // namespace sinkscope
