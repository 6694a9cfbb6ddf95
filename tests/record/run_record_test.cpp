// SPDX-License-Identifier: Apache-2.0
// Records of training runs: everything comes back, can be read while it grows and after a crash, and goes on from there.
#include "src/record/run_record.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sys/wait.h>
#include <unistd.h>

#include "gtest/gtest.h"

#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "src/record/h5_growing.hpp"
#include "src/record/record.hpp"
#include "tests/temporary_folder.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

constexpr RunShape kShape = {3, 4, 2};

class RunRecords : public TemporaryFolder {
 protected:
  void SetUp() override {
    TemporaryFolder::SetUp();
    file_ = path("run.h5");
  }

  std::string file_;
  RunInfo info_ = {{"version", "1"}, {"scenario", "[model]\nlayers = 3\n"}};
};

std::vector<double> numbers(std::int64_t count, double first) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(first + 0.01 * static_cast<double>(i));
  return values;
}

BlockValues blocks(double first) {
  const auto [layers, hq, hkv] = kShape;
  return {numbers(layers * hq, first),      numbers(layers * hq, first + 1), numbers(layers * hkv, first + 2),
          numbers(layers * hkv, first + 3), numbers(layers, first + 4),      first + 5};
}

StepRow step_row(std::int64_t step) {
  StepRow row;
  row.step = step;
  row.phase = step / 10;
  row.loss = 1.0 / static_cast<double>(step + 1);
  row.reward = std::numeric_limits<double>::quiet_NaN();
  row.gradient_norm = 2;
  row.norm2 = blocks(static_cast<double>(step));
  row.sink_mass = numbers(kShape.layers * kShape.hq, 0.1);
  return row;  // gain, entropy and max_logit were not observed
}

TrainingRun run_of(const std::string& name) {
  return {name, "flash_attention_2", "sink_kernel", {"eager", "flash_attention_2"}, kShape, {}, {}, {}, {}};
}

void expect_same(const BlockValues& got, const BlockValues& wanted) {
  EXPECT_EQ(got.q, wanted.q);
  EXPECT_EQ(got.k, wanted.k);
  EXPECT_EQ(got.v, wanted.v);
  EXPECT_EQ(got.sink, wanted.sink);
  EXPECT_EQ(got.other, wanted.other);
  EXPECT_EQ(got.outside, wanted.outside);
}

TEST_F(RunRecords, EverythingComesBack) {
  RunWriter writer(file_, info_, {run_of("b_first"), run_of("a_second")}, false);
  for (std::int64_t step = 0; step < 150; ++step) writer.add(1, step_row(step));
  writer.add(1, {{.step = 7, .path = "exact", .loss = 2, .norm2 = blocks(1), .error2 = blocks(0)},
                 {.step = 7, .path = "eager", .loss = 3, .norm2 = blocks(2), .error2 = blocks(9)}});
  SpikeRow spike;
  spike.step = 7;
  spike.fraction = -0.5;
  spike.verdict = "not attention";
  spike.share = blocks(3);
  writer.add(1, spike, {{7, "sink_ignored", 0.75}, {7, "rounding and rest", -1.25}});
  writer.finish();
  EXPECT_EQ(files(), 1) << "nothing unfinished is left";

  const RunRecord record = read_run_record(file_);
  EXPECT_TRUE(record.complete);
  EXPECT_EQ(record.attributes.at("scenario"), "[model]\nlayers = 3\n");
  ASSERT_EQ(record.runs.size(), 2U);
  EXPECT_EQ(record.runs[0].name, "b_first") << "runs keep their order";
  EXPECT_TRUE(record.runs[0].steps.empty());
  const TrainingRun& run = record.runs[1];
  EXPECT_EQ(run.training_path, "flash_attention_2");
  EXPECT_EQ(run.phase_paths, (std::vector<std::string>{"eager", "flash_attention_2"}));
  EXPECT_EQ(run.shape.hkv, 2);
  ASSERT_EQ(run.steps.size(), 150U);
  EXPECT_EQ(run.steps[149].step, 149);
  EXPECT_EQ(run.steps[149].phase, 14);
  EXPECT_EQ(run.steps[149].loss, 1.0 / 150);
  EXPECT_TRUE(std::isnan(run.steps[149].reward));
  expect_same(run.steps[149].norm2, blocks(149));
  EXPECT_EQ(run.steps[149].sink_mass, step_row(149).sink_mass);
  EXPECT_EQ(run.steps[149].entropy.size(), 12U);
  EXPECT_TRUE(std::isnan(run.steps[149].entropy[0])) << "not observed";
  ASSERT_EQ(run.replays.size(), 2U);
  EXPECT_EQ(run.replays[1].path, "eager");
  EXPECT_EQ(run.replays[1].loss, 3);
  expect_same(run.replays[1].error2, blocks(9));
  ASSERT_EQ(run.spikes.size(), 1U);
  EXPECT_EQ(run.spikes[0].verdict, "not attention");
  EXPECT_EQ(run.spikes[0].capture, "");
  expect_same(run.spikes[0].share, blocks(3));
  ASSERT_EQ(run.causes.size(), 2U);
  EXPECT_EQ(run.causes[0].cause, "sink_ignored");
  EXPECT_EQ(run.causes[1].share, -1.25);
}

TEST_F(RunRecords, CanBeFollowedWhileItGrows) {
  RunWriter writer(file_, info_, {run_of("a")}, false);
  for (std::int64_t step = 0; step < 3; ++step) {
    writer.add(0, step_row(step));
    const RunRecord seen = read_run_record(partial_run_record(file_));
    EXPECT_FALSE(seen.complete);
    ASSERT_EQ(seen.runs.at(0).steps.size(), static_cast<std::size_t>(step + 1));
    EXPECT_EQ(seen.runs[0].steps.back().loss, step_row(step).loss);
  }
  EXPECT_FALSE(fs::exists(file_)) << "nothing partial has the final name";
}

// Another process reads as fast as it can, at whatever moment of a write that is.
TEST_F(RunRecords, CanBeReadInTheMiddleOfAWrite) {
  constexpr std::int64_t kSteps = 2000;
  RunWriter(file_, info_, {run_of("a")}, false);
  const pid_t child = ::fork();
  if (child == 0) {
    RunWriter writer(file_, info_, {run_of("a")}, false);
    for (std::int64_t step = 0; step < kSteps; ++step) writer.add(0, step_row(step));
    ::_exit(0);
  }
  int status = 0;
  for (bool is_writing = true; is_writing;) {
    is_writing = ::waitpid(child, &status, WNOHANG) == 0;
    const std::vector<StepRow> steps = read_run_record(partial_run_record(file_)).runs.at(0).steps;
    for (std::size_t step = 0; step < steps.size(); ++step) {
      ASSERT_EQ(steps[step].step, step);
      expect_same(steps[step].norm2, step_row(steps[step].step).norm2);
    }
    if (!is_writing) {
      EXPECT_EQ(steps.size(), kSteps);
    }
  }
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// The rows of a chunk are written over again with each new one; a crash may cut that short.
TEST_F(RunRecords, AWriteThatWasCutShortHarmsItsOwnRowAlone) {
  constexpr double kLast = 0.123456789;
  {
    RunWriter writer(file_, info_, {run_of("a")}, false);
    for (std::int64_t step = 0; step < 5; ++step) {
      StepRow row = step_row(step);
      if (step == 4) row.loss = kLast;
      writer.add(0, row);
    }
  }
  const std::string partial = partial_run_record(file_);
  std::string bytes = read_file(partial, "record");
  std::array<char, sizeof kLast> last{};
  std::memcpy(last.data(), &kLast, sizeof kLast);
  const auto at = std::search(bytes.begin(), bytes.end(), last.begin(), last.end());
  ASSERT_NE(at, bytes.end());
  std::fill_n(at, 3, '\0');
  write_file(partial, bytes, true);
  const std::vector<StepRow> steps = read_run_record(partial).runs.at(0).steps;
  ASSERT_EQ(steps.size(), 5U);
  EXPECT_NE(steps[4].loss, kLast);
  for (std::int64_t step = 0; step < 4; ++step) EXPECT_EQ(steps[step].loss, step_row(step).loss);
}

// HDF5 waits for a writer to put such a thing right, twice as long each time.
TEST_F(RunRecords, AStructureThatStaysDamagedIsAnErrorAndNotWaitedForEver) {
  RunWriter(file_, info_, {run_of("a")}, false);
  const std::string partial = partial_run_record(file_);
  std::string bytes = read_file(partial, "record");
  const std::string header = "OHDR";
  const std::size_t root = bytes.find(header);
  for (std::size_t at = root; (at = bytes.find(header, at + 1)) != std::string::npos;) bytes[at + 8] ^= 1;
  write_file(partial, bytes, true);
  EXPECT_THROW(read_run_record(partial), InputError);
}

TEST_F(RunRecords, ACrashLeavesItsStepsAndTheRunGoesOn) {
  const pid_t child = ::fork();
  if (child == 0) {
    RunWriter writer(file_, info_, {run_of("a")}, false);
    for (std::int64_t step = 0; step < 20; ++step) writer.add(0, step_row(step));
    ::raise(SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));

  std::vector<TrainingRun> runs = read_run_record(partial_run_record(file_)).runs;
  ASSERT_EQ(runs.at(0).steps.size(), 20U);
  truncate(runs[0], 12);  // where the last checkpoint is
  RunWriter writer(file_, info_, runs, false);
  writer.add(0, step_row(12));
  writer.finish();
  const RunRecord record = read_run_record(file_);
  ASSERT_EQ(record.runs[0].steps.size(), 13U);
  for (std::int64_t step = 0; step < 13; ++step) EXPECT_EQ(record.runs[0].steps[step].step, step);
  EXPECT_EQ(files(), 1);
}

TEST_F(RunRecords, WhatIsThereIsNotReplaced) {
  std::ofstream(file_) << "mine";
  EXPECT_THROW(RunWriter(file_, info_, {run_of("a")}, false), InputError);
  RunWriter(file_, info_, {run_of("a")}, true).finish();
  EXPECT_EQ(read_run_record(file_).runs.size(), 1U);
}

TEST_F(RunRecords, OtherFilesAreRefused) {
  EXPECT_THROW(read_run_record(path("none.h5")), InputError);
  std::ofstream(file_) << "no HDF5";
  EXPECT_THROW(read_run_record(file_), InputError);
  RecordWriter(path("compare.h5"), info_, read_gate("reports/gates/default.toml"), false).finish();
  try {
    read_run_record(path("compare.h5"));
    ADD_FAILURE() << "a record of compare was read";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("not a record of training runs"), std::string::npos)
        << error.what();
  }
}

TEST_F(RunRecords, AColumnOfAnotherShapeIsRefused) {
  {
    RunWriter writer(file_, info_, {run_of("a")}, false);
    writer.add(0, step_row(0));
    writer.finish();
  }
  {
    const h5::Handle file = h5::open_closed_file(file_);
    const h5::Handle steps = h5::open_group(file, "runs/a/steps");
    ASSERT_GE(H5Ldelete(steps, "q_norm2", H5P_DEFAULT), 0);
    h5::write_dataset(steps, "q_norm2", {1, 3}, std::vector<double>{1, 2, 3});
  }
  EXPECT_THROW(read_run_record(file_), InputError);
}

TEST_F(RunRecords, ALongTextIsAnErrorAndNotCut) {
  RunWriter writer(file_, info_, {run_of("a")}, false);
  EXPECT_THROW(writer.add(0, {{.path = std::string(600, 'x'), .norm2 = blocks(1), .error2 = blocks(0)}}),
               EnvironmentError);
}

}  // namespace
}  // namespace sinkscope
