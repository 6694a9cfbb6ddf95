// SPDX-License-Identifier: Apache-2.0
// Scenarios are read strictly, and every one that comes with the tool can be.
#include "src/scenario/scenario.hpp"

#include <filesystem>

#include "gtest/gtest.h"

#include "src/core/error.hpp"
#include "src/core/file.hpp"

namespace sinkscope {
namespace {

const char* const kSmall =
    "summary = 'x'\n[model]\nlayers = 3\n[task]\nkind = 'sorting'\n[step]\nlearning_rate = 0.5\n"
    "[[run]]\nname = 'a'\nphase = [{ steps = 2, training_path = 'exact' }, { steps = 3, kind = 'reinforce', "
    "learning_rate = 0.25 }]\n";

std::string error_of(const std::string& toml) {
  try {
    parse_scenario(toml, "s");
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

std::string changed(const std::string& from, const std::string& to) {
  std::string text = kSmall;
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Scenario, IsWhatTheFileSays) {
  const Scenario scenario = parse_scenario(kSmall, "s");
  EXPECT_EQ(scenario.lab.model.layers, 3);
  EXPECT_EQ(scenario.lab.model.width, lab::ModelShape{}.width) << "what is not said has its default";
  EXPECT_TRUE(scenario.lab.sorting);
  EXPECT_TRUE(scenario.start.phases.empty());
  ASSERT_EQ(scenario.runs.size(), 1U);
  const RunPlan& run = scenario.runs[0];
  ASSERT_EQ(run.phases.size(), 2U);
  EXPECT_EQ(run.phases[0].settings.training_path, "exact");
  EXPECT_EQ(run.phases[0].settings.learning_rate, 0.5) << "of [step]";
  EXPECT_EQ(run.phases[1].settings.learning_rate, 0.25) << "its own";
  EXPECT_EQ(run.phases[1].settings.kind, lab::StepKind::kReinforce);
  EXPECT_EQ(steps_of(run), 5);
  EXPECT_EQ(phase_at(run, 1), 0U);
  EXPECT_EQ(phase_at(run, 2), 1U);
  EXPECT_THROW(phase_at(run, 5), std::out_of_range);
}

TEST(Scenario, NothingBesideTheTrainingIsAMust) {
  const Watching watching = parse_scenario(std::string(kSmall) +
                                               "[record]\nobserve_every = 0\nexact_every = 0\n"
                                               "checkpoint_every = 0\nexplained = 0\n",
                                           "s")
                                .watching;
  EXPECT_EQ(watching.checkpoint_every, 0);
  EXPECT_EQ(watching.explained, 0);
}

TEST(Scenario, ErrorsNameTheKey) {
  const auto expect = [](const std::string& toml, const std::string& part) {
    EXPECT_NE(error_of(toml).find(part), std::string::npos) << error_of(toml);
  };
  expect(changed("layers = 3", "layers = 0"), "model.layers is 0");
  expect(changed("layers = 3", "layer = 3"), "model.layer is not known, wanted one of layers, width");
  expect(changed("kind = 'sorting'", "kind = 'sums'"), "wanted one of text, sorting");
  expect(changed("kind = 'sorting'", "kind = 'text'"), "task.path is missing");
  expect(changed("kind = 'sorting'", "kind = 'sorting'\nlength = 3"), "task.length is not known");
  expect(changed("'reinforce'", "'other'"), "run[0].phase[1].kind");
  expect(changed("name = 'a'", "name = 'a/b'"), "letters, digits");
  expect(changed("name = 'a'", "name = 'start'"), "not the start");
  expect(changed("steps = 2, ", ""), "run[0].phase[0].steps is missing");
  expect("summary = 'x'\n[model]\n[task]\nkind = 'sorting'\n", "run is missing");
  const std::string run = "[[run]]\nname = 'a'\nphase = [{ steps = 1 }]\n";
  expect("summary = 'x'\n[model]\n[task]\nkind = 'sorting'\n" + run + run, "no other run");
}

TEST(Scenario, EveryShippedOneIsReadAndDescribed) {
  const std::string readme = read_file("datasets/scenarios/README.md", "scenario");
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("datasets/scenarios")) {
    if (entry.path().extension() != ".toml") continue;
    const Scenario scenario = read_scenario(entry.path().string());
    EXPECT_EQ(scenario.name, entry.path().stem());
    EXPECT_NE(readme.find("`" + scenario.name + "`"), std::string::npos) << scenario.name;
    ++count;
  }
  EXPECT_GE(count, 8);
}

}  // namespace
}  // namespace sinkscope
