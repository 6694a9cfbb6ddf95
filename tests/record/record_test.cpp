// SPDX-License-Identifier: Apache-2.0
// Records: everything comes back, nothing incomplete is taken for a record, and a crash leaves the verdicts.
#include "src/record/record.hpp"

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fmt/format.h"
#include "gtest/gtest.h"

#include "src/compare/compare.hpp"
#include "src/core/error.hpp"
#include "src/paths/sink_kernel_cuda.hpp"
#include "src/record/compare_records.hpp"
#include "src/record/h5.hpp"
#include "src/record/run_info.hpp"
#include "tests/temporary_folder.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

class Records : public TemporaryFolder {
 protected:
  Gate gate_ = read_gate("reports/gates/default.toml");
};

CaseResult result_of(const Gate& gate, const std::string& line, const std::string& path = "sink_kernel",
                     bool keep = false) {
  CompareOptions options;
  options.paths = {path};
  options.keep_outputs = keep;
  return compare_case(generate_case(parse_problem(line), "p0001"), gate, options);
}

const char* const kLine = "b2 hq4 hkv2 sq70 sk70 d64 bf16 causal w30 dlse seed=9";

RunInfo info() {
  return {{"version", "1"}, {"command_line", "sinkscope compare \"x\""}};
}

void expect_same(const VerdictRow& a, const VerdictRow& b) {
  EXPECT_EQ(a.problem, b.problem);
  EXPECT_EQ(a.path, b.path);
  EXPECT_EQ(a.tensor, b.tensor);
  EXPECT_EQ(a.verdict, b.verdict);
  EXPECT_EQ(a.judged, b.judged);
  EXPECT_EQ(a.metric, b.metric);
  EXPECT_EQ(a.batch, b.batch);
  EXPECT_EQ(a.head, b.head);
  EXPECT_EQ(a.row, b.row);
  EXPECT_EQ(a.value, b.value);
  EXPECT_EQ(a.limit, b.limit);
  EXPECT_EQ(a.failed_heads, b.failed_heads);
  EXPECT_EQ(a.reason, b.reason);
  EXPECT_EQ(a.repro, b.repro);
}

TEST(RunInfoOfARecord, SaysWhichCudaBuiltTheKernel) {
  for (const auto& [name, value] : collect_run_info("", 0)) {
    if (name != "cuda") continue;
    EXPECT_EQ(value != "none", cuda_kernel_built()) << value;
    return;
  }
  FAIL() << "there is no attribute cuda";
}

TEST_F(Records, FindingsAreStored) {
  CompareOptions options;
  options.paths = {"fault:gqa_mean:sink_kernel", "sink_kernel"};
  options.explain = true;
  const CaseResult explained = compare_case(generate_case(parse_problem(kLine), "p0001"), gate_, options);
  RecordWriter writer(path("a.h5"), info(), gate_, false);
  writer.add(explained);
  writer.finish();

  const h5::Handle file = h5::open_file(path("a.h5"));
  const h5::Handle group = h5::open_group(file, "problems/p0001/explain");
  const std::vector<std::string> causes = h5::read_texts(group, "cause");
  ASSERT_GT(causes.size(), 2U);
  EXPECT_EQ(causes[0], "gqa_mean");
  EXPECT_EQ(causes[1], "none");
  EXPECT_EQ(causes[2].substr(0, 9), "rounding:");
  EXPECT_EQ(h5::read_texts(group, "tensors").at(0), "dk dv");
  EXPECT_EQ(h5::read_texts(group, "heads").at(0), "0 1");
  EXPECT_EQ(h5::read_integers(group, "heads_of_keys").at(0), 1);
  EXPECT_EQ(h5::read_integers(group, "first_row").at(0), -1);
  EXPECT_GT(h5::read_reals(group, "share").at(0), 0.9);

  // Of each head of each tensor, the shares of its stages and the remainder are the whole.
  const h5::Handle stages = h5::open_group(group, "stages");
  const std::vector<std::string> tensors = h5::read_texts(stages, "tensor");
  const std::vector<std::int64_t> batches = h5::read_integers(stages, "batch"),
                                  heads = h5::read_integers(stages, "head");
  const std::vector<double> shares = h5::read_reals(stages, "share");
  const std::vector<std::string> paths = h5::read_texts(stages, "path");
  std::map<std::string, double> sums;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    sums[fmt::format("{} {} {} {}", paths[i], tensors[i], batches[i], heads[i])] += shares[i];
  EXPECT_EQ(sums.size(), 2U * (4 + 4) + 4 + 2U * (4 + 4 + 2 + 2) + 4)
      << "out dq dk dv of two batch entries and dsinks, but dk and dv of the fault";
  for (const auto& [head, sum] : sums) EXPECT_NEAR(sum, 1, 1e-9) << head;
  EXPECT_EQ(h5::read_texts(stages, "stage").size(), tensors.size());
  EXPECT_EQ(h5::read_reals(stages, "bias").size(), tensors.size());
}

TEST_F(Records, WhatItMeansForTrainingIsStored) {
  CompareOptions options;
  options.paths = {"fault:gqa_mean:sink_kernel", "sink_kernel"};
  options.explain = true;
  const CaseResult explained = compare_case(generate_case(parse_problem(kLine), "p0001"), gate_, options);
  RecordWriter writer(path("a.h5"), info(), gate_, false);
  writer.add(explained);
  writer.finish();

  const h5::Handle file = h5::open_file(path("a.h5"));
  const h5::Handle group = h5::open_group(file, "problems/p0001/explain/training");
  const Training& faulty = explained.paths.at(0).explanation.training;
  const h5::Handle paths = h5::open_group(group, "paths"), heads = h5::open_group(group, "heads");
  const h5::Handle causes = h5::open_group(group, "causes"), shares = h5::open_group(group, "shares");
  EXPECT_EQ(h5::read_texts(paths, "path"), options.paths);
  EXPECT_EQ(h5::read_integers(paths, "changed"), (std::vector<std::int64_t>{1, 0}));
  EXPECT_EQ(h5::read_reals(paths, "layer_norm2").at(0), faulty.layer.got);
  EXPECT_EQ(h5::read_texts(paths, "sentence").at(0), faulty.sentence);
  EXPECT_EQ(h5::read_texts(causes, "cause"), (std::vector<std::string>{"gqa_mean", "rounding"}));
  EXPECT_EQ(h5::read_reals(shares, "share").size(), faulty.shares.size());
  ASSERT_EQ(h5::read_reals(heads, "gain").size(), 2 * faulty.heads.size());
  EXPECT_EQ(h5::read_reals(heads, "predicted_gain").at(0), faulty.heads[0].predicted_gain);
  EXPECT_EQ(h5::read_texts(heads, "tensor").at(0), "out");
}

TEST_F(Records, EverythingComesBack) {
  CaseResult written = result_of(gate_, kLine);
  written.metadata = {{"layer", "3"}, {"source", "a model"}, {"window", "30"}};
  RunInfo run = info();
  run.emplace_back("truth", "cuda");
  RecordWriter writer(path("a.h5"), run, gate_, false);
  writer.add(written);
  EXPECT_FALSE(fs::exists(path("a.h5")));
  writer.finish();

  EXPECT_EQ(files(), 1) << "the sidecar is gone";
  const Record record = read_record(path("a.h5"));

  EXPECT_EQ(record.attributes.at("command_line"), "sinkscope compare \"x\"");
  EXPECT_EQ(parse_gate(record.gate_toml, "default"), gate_);
  ASSERT_EQ(record.cases.size(), 1U);
  const CaseResult& read = record.cases[0];
  EXPECT_EQ(read.name, "p0001");
  EXPECT_EQ(read.problem_line, written.problem_line);
  EXPECT_EQ(read.truth, "cuda");
  EXPECT_EQ(read.inputs_sha256, written.inputs_sha256);
  EXPECT_EQ(read.seed, 9U);
  EXPECT_EQ(read.metadata, (std::map<std::string, std::string>{{"layer", "3"}, {"source", "a model"}}));
  EXPECT_EQ(read.facts.p_sink_mean, written.facts.p_sink_mean);
  EXPECT_EQ(read.facts.predicted_gain, written.facts.predicted_gain);
  EXPECT_EQ(read.facts.entropy, written.facts.entropy);
  ASSERT_EQ(read.paths.size(), 1U);
  EXPECT_EQ(read.paths[0].backend, written.paths[0].backend);
  ASSERT_EQ(read.paths[0].metrics.size(), 6U);
  for (std::size_t t = 0; t < 6; ++t) {
    const TensorMetrics &a = read.paths[0].metrics[t], &b = written.paths[0].metrics[t];
    EXPECT_EQ(a.tensor, b.tensor);
    ASSERT_EQ(a.heads.size(), b.heads.size());
    for (std::size_t head = 0; head < a.heads.size(); ++head) {
      for (const MetricInfo& metric : all_metrics())
        EXPECT_EQ(metric.value(a.heads[head]), metric.value(b.heads[head]))
            << text(a.tensor) << " " << metric.name;
      EXPECT_EQ(a.heads[head].profile, b.heads[head].profile);
    }
  }
  ASSERT_EQ(record.verdicts.size(), written.paths[0].verdicts.size());
  for (std::size_t i = 0; i < record.verdicts.size(); ++i) {
    expect_same(record.verdicts[i], written.paths[0].verdicts[i]);
    expect_same(read.paths[0].verdicts[i], written.paths[0].verdicts[i]);
  }
}

TEST_F(Records, CanBeJudgedAgain) {
  RecordWriter writer(path("a.h5"), info(), gate_, false);
  writer.add(result_of(gate_, kLine, "fault:dq_scaled:sink_kernel"));
  writer.finish();
  Record record = read_record(path("a.h5"));
  rejudge(record.cases.at(0), gate_);
  ASSERT_EQ(record.verdicts.size(), record.cases[0].paths.at(0).verdicts.size());
  for (std::size_t i = 0; i < record.verdicts.size(); ++i)
    expect_same(record.cases[0].paths[0].verdicts[i], record.verdicts[i]);
}

TEST_F(Records, StoreTensorsAsBits) {
  const Case c = generate_case(parse_problem(kLine), "p0001");
  RecordWriter writer(path("a.h5"), info(), gate_, false);
  writer.add(result_of(gate_, kLine, "sink_kernel", true), &c);
  writer.finish();
  const h5::Handle file = h5::open_file(path("a.h5"));
  const h5::Handle inputs = h5::open_group(file, "problems/p0001/tensors/inputs");
  const h5::Handle q = h5::open_dataset(inputs, "q");
  EXPECT_EQ(h5::read_text_attribute(q, "format"), "bf16");
  const std::vector<std::int64_t> bits = h5::read_integers(inputs, "q");
  ASSERT_EQ(bits.size(), static_cast<std::size_t>(c.q.size()));
  for (std::size_t i = 0; i < bits.size(); ++i) ASSERT_EQ(bits[i], c.q.as<std::uint16_t>()[i]);
  EXPECT_TRUE(h5::exists(file, "problems/p0001/tensors/sink_kernel/dq"));
}

TEST_F(Records, AreRefusedWhenTheyAreNotOne) {
  const auto expect = [&](const std::string& part) {
    try {
      read_record(path("a.h5"));
      ADD_FAILURE() << "read";
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(path("a.h5")), std::string::npos) << error.what();
    }
  };
  expect("does not exist");
  std::ofstream(path("a.h5")) << "not HDF5";
  expect("not");
  { h5::create_file(path("a.h5")); }
  expect("not a record");
  const auto with_attributes = [&](const std::string& version, std::int64_t complete) {
    const h5::Handle file = h5::create_file(path("a.h5"));
    h5::write_attribute(file, "encoding-type", std::string("sinkscope-record"));
    h5::write_attribute(file, "encoding-version", version);
    h5::write_attribute(file, "complete", complete);
  };
  with_attributes("2.0", 1);
  expect("encoding-version 2.0, wanted 1.x");
  with_attributes("1.7", 0);
  expect("incomplete");
  with_attributes("1.7", 1);
  expect("a.h5");  // a newer minor is read, but this one has nothing in it
}

TEST_F(Records, TruncatedFilesAreRefused) {
  RecordWriter writer(path("whole.h5"), info(), gate_, false);
  writer.add(result_of(gate_, kLine));
  writer.finish();
  const auto size = fs::file_size(path("whole.h5"));
  for (const double share : {0.01, 0.3, 0.6, 0.95}) {
    fs::copy_file(path("whole.h5"), path("a.h5"), fs::copy_options::overwrite_existing);
    fs::resize_file(path("a.h5"), static_cast<std::uintmax_t>(share * static_cast<double>(size)));
    EXPECT_THROW(read_record(path("a.h5")), InputError) << share;
  }
}

TEST_F(Records, LeaveNothingWhenNotFinished) {
  {
    RecordWriter writer(path("a.h5"), info(), gate_, false);
    writer.add(result_of(gate_, kLine));
  }
  EXPECT_EQ(files(), 0);
}

// Runs `body` in a child process and gives its wait status.
int in_child(const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

TEST_F(Records, ACrashLeavesTheVerdicts) {
  const CaseResult result = result_of(gate_, kLine);
  const int status = in_child([&] {
    RecordWriter writer(path("a.h5"), info(), gate_, false);
    writer.add(result);
    ::raise(SIGKILL);
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(fs::exists(path("a.h5")));
  int lines = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
    if (entry.path().filename().string().find("jsonl") == std::string::npos) continue;
    std::ifstream stream(entry.path());
    for (std::string line; std::getline(stream, line); ++lines)
      EXPECT_NE(line.find("\"verdict\":\"passed\""), std::string::npos) << line;
  }
  EXPECT_EQ(lines, 6);
}

TEST_F(Records, AFullDiskIsSaidAndLeavesNothing) {
  const CaseResult result = result_of(gate_, kLine);
  for (const rlim_t bytes : {rlim_t{0}, rlim_t{3000}, rlim_t{60'000}}) {
    const int status = in_child([&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit = {bytes, bytes};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      try {
        RecordWriter writer(path("a.h5"), info(), gate_, false);
        writer.add(result);
        writer.finish();
      } catch (const EnvironmentError&) {
        ::_exit(7);
      }
    });
    ASSERT_TRUE(WIFEXITED(status)) << bytes;
    EXPECT_EQ(WEXITSTATUS(status), 7) << bytes;
    EXPECT_EQ(files(), 0) << bytes;
  }
}

Record record_of(const CaseResult& result, const Gate& gate) {
  return {{}, to_toml(gate), {result}, {}};
}

TEST(RecordDiff, NothingChangedBetweenEqualRecords) {
  const Gate gate = read_gate("reports/gates/default.toml");
  const Record record = record_of(result_of(gate, kLine), gate);
  EXPECT_TRUE(compare_records(record, record).empty());
}

TEST(RecordDiff, SaysWhatGotWorseAndBetter) {
  const Gate gate = read_gate("reports/gates/default.toml");
  CaseResult good = result_of(gate, kLine);
  CaseResult bad = result_of(gate, kLine, "fault:dq_scaled:sink_kernel");
  bad.paths.at(0).path = "sink_kernel";
  const std::vector<Change> worse = compare_records(record_of(good, gate), record_of(bad, gate));
  ASSERT_FALSE(worse.empty());
  for (const Change& change : worse) {
    EXPECT_EQ(change.kind, ChangeKind::kWorse) << change.sentence;
    EXPECT_EQ(change.tensor, "dq") << change.sentence;
  }
  for (const Change& change : compare_records(record_of(bad, gate), record_of(good, gate)))
    EXPECT_EQ(change.kind, ChangeKind::kBetter) << change.sentence;
}

TEST(RecordDiff, OtherInputsCannotBeCompared) {
  const Gate gate = read_gate("reports/gates/default.toml");
  const std::vector<Change> changes =
      compare_records(record_of(result_of(gate, kLine), gate),
                      record_of(result_of(gate, "b2 hq4 hkv2 sq70 sk70 d64 bf16 causal seed=10"), gate));
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(changes[0].kind, ChangeKind::kInputsDiffer);
}

TEST(RecordDiff, AddedAndRemoved) {
  const Gate gate = read_gate("reports/gates/default.toml");
  const CaseResult one = result_of(gate, kLine);
  CaseResult other = one;
  other.name = "p0002";
  const std::vector<Change> changes = compare_records(record_of(one, gate), record_of(other, gate));
  ASSERT_EQ(changes.size(), 2U);
  EXPECT_EQ(changes[0].kind, ChangeKind::kAdded);
  EXPECT_EQ(changes[1].kind, ChangeKind::kRemoved);
}

}  // namespace
}  // namespace sinkscope
