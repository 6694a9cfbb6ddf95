// SPDX-License-Identifier: Apache-2.0
// sinkscope spike, from a scenario to a verdict. What trains is skipped where the lab is not built.
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/tools/command.hpp"

namespace sinkscope::tools {
namespace {

class SpikeCommand : public CommandTest {
 protected:
  // The lab's module lies beside the command.
  static bool has_lab() {
    return fs::exists(fs::path(SINKSCOPE_EXECUTABLE).parent_path() / "sinkscope_lab.so");
  }
  static void expect_part(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
  }
};

class Training : public SpikeCommand {
 protected:
  void SetUp() override {
    if (!has_lab()) GTEST_SKIP() << "the lab is not built: it needs libtorch";
    SpikeCommand::SetUp();
  }
};

TEST_F(Training, TheAccidentFailsTheGateAndTheControlPassesIt) {
  const std::string record = path("grpo.h5");
  const Ran ran = sinkscope("spike small_grpo --quiet -o " + record + " --gate");
  EXPECT_EQ(ran.code, 1) << ran.err;
  expect_part(ran.out, "  healthy                    passed\n");
  expect_part(ran.out, "  without_sinks              failed\n");
  expect_part(ran.out, "without_sinks: the gradient of layer 0 sink of head 0 at step 0 is off by 1 times");
  expect_part(ran.out, "without_sinks: the mean |log-probability gap| to the rollouts is");
  expect_part(ran.out, "rolled out through eager_fp32, trained through flash_attention_2");
  EXPECT_EQ(files(), 1) << "no unfinished record, no checkpoints";

  const Ran shown = sinkscope("spike --show " + record + " --gate default");
  EXPECT_EQ(shown.code, 1) << shown.err;
  const std::string line = "record: " + record + "\n";
  std::string trained = ran.out;
  ASSERT_NE(trained.find(line), std::string::npos);
  EXPECT_EQ(shown.out, trained.erase(trained.find(line), line.size()))
      << "a record says all that the training did";

  EXPECT_EQ(sinkscope("spike small_grpo --quiet -o " + record).code, 2) << "a record is not replaced";
}

TEST_F(Training, APathOfALaterPhaseIsRefusedBeforeTheFirst) {
  std::ifstream shipped("datasets/scenarios/small_text.toml");
  std::string toml((std::istreambuf_iterator<char>(shipped)), {});
  const std::string named = "steps = 6, training_path = \"flash_attention_2\"";
  ASSERT_NE(toml.find(named), std::string::npos);
  toml.replace(toml.find(named), named.size(), "steps = 6, training_path = \"flash_attention_3\"");
  std::ofstream(path("typo.toml")) << toml;
  const Ran ran = sinkscope("spike " + path("typo.toml") + " --quiet -o " + path("typo.h5"));
  EXPECT_EQ(ran.code, 2);
  expect_part(ran.err, "scenario typo: path 'flash_attention_3' is not known, wanted sink_kernel,");
  EXPECT_EQ(files(), 1) << "no record of a start was begun";
}

TEST_F(Training, AChosenRunPasses) {
  const Ran ran = sinkscope("spike small_grpo --quiet --runs healthy --steps 2 --gate -o " + path("a.h5"));
  EXPECT_EQ(ran.code, 0) << ran.err;
  expect_part(ran.out, "PASSED  runs: 1 passed, 0 failed");
  EXPECT_EQ(ran.out.find("without_sinks"), std::string::npos) << ran.out;
}

TEST_F(Training, AnInterruptedTrainingGoesOnAndEndsTheSame) {
  const std::string whole = path("whole.h5"), cut = path("cut.h5");
  ASSERT_EQ(sinkscope("spike small_text --quiet -o " + whole).code, 0);
  // Killed as soon as the first run has a checkpoint.
  shell(std::string(SINKSCOPE_EXECUTABLE) + " spike small_text --quiet -o " + cut + " & while [ ! -e " + cut +
        ".state/healthy.4 ] && kill -0 $!; do sleep 0.01; done; kill -KILL $!");
  EXPECT_FALSE(fs::exists(cut));
  expect_part(sinkscope("spike --show " + cut).out, "small_text, seed 1  (unfinished)");
  ASSERT_EQ(sinkscope("spike small_text --quiet --resume -o " + cut).code, 0);
  EXPECT_EQ(sinkscope("spike --show " + cut).out, sinkscope("spike --show " + whole).out);
  expect_part(sinkscope("spike small_text --quiet --resume -o " + cut).err, cut + " is finished");
}

TEST_F(Training, WhatCannotBeTrainedIsAnErrorOfTheInput) {
  EXPECT_EQ(sinkscope("spike small_grpo --runs other -o " + path("a.h5")).code, 2);
  EXPECT_EQ(sinkscope("spike small_grpo --resume -o " + path("a.h5")).code, 2) << "nothing to go on with";
  EXPECT_EQ(sinkscope("spike small_grpo --gate no_such_gate -o " + path("a.h5")).code, 2);
  EXPECT_EQ(files(), 0) << "nothing was trained";
}

TEST_F(SpikeCommand, WrongArgumentsAreRefused) {
  EXPECT_EQ(sinkscope("spike").code, 2);
  EXPECT_EQ(sinkscope("spike --list small_grpo").code, 2);
  EXPECT_EQ(sinkscope("spike --show " + path("none.h5")).code, 2);
  EXPECT_EQ(sinkscope("spike --show datasets/README.md").code, 2);
  EXPECT_EQ(sinkscope("spike --show " + path("none.h5") + " --runs healthy").code, 2);
  EXPECT_EQ(sinkscope("spike small_grpo --seed -1").code, 2);
}

TEST_F(SpikeCommand, WithoutTheLabTheReasonIsSaid) {
  if (has_lab()) GTEST_SKIP() << "the lab is here";
  const Ran ran = sinkscope("spike small_grpo -o " + path("a.h5"));
  EXPECT_EQ(ran.code, 3);
  expect_part(ran.err, "libtorch");
}

}  // namespace
}  // namespace sinkscope::tools
