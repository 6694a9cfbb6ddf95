// SPDX-License-Identifier: Apache-2.0
// Every planted fault is caught by the default gate, in the tensors where it is, or says why it cannot be seen.
#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

#include "fmt/format.h"
#include "gtest/gtest.h"

#include "src/compare/compare.hpp"
#include "src/core/error.hpp"
#include "src/faults/fault.hpp"
#include "src/paths/table.hpp"

namespace sinkscope {
namespace {

std::set<std::string> failed_tensors(const PathResult& path) {
  std::set<std::string> failed;
  for (const VerdictRow& row : path.verdicts) {
    if (row.verdict == Verdict::kFailed) failed.insert(row.tensor);
  }
  return failed;
}

PathResult compared(const std::string& line, const std::string& fault) {
  const Case c = generate_case(parse_problem(line), "test");
  CompareOptions options;
  options.paths = {fmt::format("fault:{}:sink_kernel", fault)};
  return compare_case(c, read_gate("reports/gates/default.toml"), options).paths.at(0);
}

TEST(Faults, FailInTheTensorsWhereTheyAre) {
  const std::set<std::string> all = {"out", "lse", "dq", "dk", "dv", "dsinks"};
  const std::map<std::string, std::set<std::string>> wanted = {
      {"sink_ignored", all},        {"sink_permuted", all},   {"dq_head_lost", {"dq"}},
      {"dq_scaled", {"dq"}},        {"window_plus_one", all}, {"dlse_dropped", {"dq", "dk"}},
      {"dsink_missing", {"dsinks"}}};
  for (const Fault& fault : gate_faults()) {
    for (const char* dtype : {"bf16", "fp16", "fp32"}) {
      const PathResult path =
          compared(fmt::format("b1 hq4 hkv2 sq300 sk300 d64 {} causal w32 seed=3", dtype), fault.name);
      EXPECT_EQ(failed_tensors(path), wanted.at(fault.name)) << fault.name << " " << dtype;
    }
  }
}

TEST(Faults, SayWhereTheyCannotBeSeen) {
  const auto reason = [](const std::string& line, const std::string& fault) {
    return compared(line, fault).verdicts.at(0);
  };
  for (const auto& [line, fault] : {std::pair{"sq64 sink=none", "sink_ignored"},
                                    {"sq64 hq1", "sink_permuted"},
                                    {"sq64", "window_plus_one"},
                                    {"sq64 w64", "window_plus_one"},
                                    {"sq64 grads=v", "dq_scaled"},
                                    {"sq64 grads=v", "dq_head_lost"},
                                    {"sq64 grads=q", "dsink_missing"}}) {
    EXPECT_EQ(reason(line, fault).verdict, Verdict::kSkipped) << line << " " << fault;
    EXPECT_FALSE(reason(line, fault).reason.empty());
  }
}

TEST(Faults, OfDqNeedAPathThatGivesOne) {
  Case c = generate_case(parse_problem("b1 hq2 hkv1 sq8 sk8 d64 bf16 causal seed=1"), "test");
  c.recorded["mine"].out = c.q;
  EXPECT_THROW(find_path("fault:dq_head_lost:recorded.mine", c).run(c, {}), std::runtime_error);
  EXPECT_THROW(find_path("fault:dq_scaled:recorded.mine", c).run(c, {}), std::runtime_error);
}

TEST(Faults, OfTheLseNeedAPathThatGivesOne) {
  Case c = generate_case(parse_problem("b1 hq2 hkv1 sq8 sk8 d64 bf16 causal seed=1"), "test");
  c.recorded["mine"] = find_path("sink_kernel", c).run(c, {}).outputs;
  c.recorded["mine"].lse = {};
  for (const char* fault : {"lse_log2", "lse_without_sink", "delta_uncorrected", "dsink_from_ds"})
    EXPECT_THROW(find_path(fmt::format("fault:{}:recorded.mine", fault), c).run(c, {}), std::runtime_error)
        << fault;
}

// Key/value head 1, query heads 2 and 3, of each batch entry.
TEST(Faults, HoldInOneGroupOfHeads) {
  const Case c = generate_case(parse_problem("b2 hq4 hkv2 sq32 sk32 d64 bf16 causal seed=4"), "test");
  const Outputs right = find_path("sink_kernel", c).run(c, {}).outputs;
  const Outputs everywhere = find_path("fault:sink_ignored:sink_kernel", c).run(c, {}).outputs;
  const Path path = find_path("fault:sink_ignored@1:sink_kernel", c);
  EXPECT_EQ(path.name, "fault:sink_ignored@1:sink_kernel");
  const Outputs mixed = path.run(c, {}).outputs;
  for (const TensorName name :
       {TensorName::kOut, TensorName::kLse, TensorName::kDq, TensorName::kDk, TensorName::kDv}) {
    const std::int64_t heads = is_of_keys(name) ? 2 : 4, per_head = mixed[name].size() / (2 * heads);
    for (std::int64_t i = 0; i < mixed[name].size(); ++i) {
      const bool in_group = i / per_head % heads >= heads / 2;
      ASSERT_EQ(mixed[name].at(i), (in_group ? everywhere : right)[name].at(i)) << text(name) << " " << i;
    }
  }
  EXPECT_EQ(mixed.dsinks.at(1), right.dsinks.at(1));
  EXPECT_EQ(mixed.dsinks.at(2), 0);
}

TEST(Faults, SayWhereOneGroupCannotHaveThem) {
  const auto verdict = [](const std::string& fault) {
    return compared("b1 hq4 hkv2 sq32 sk32 d64 bf16 causal seed=5", fault).verdicts.at(0).verdict;
  };
  EXPECT_EQ(verdict("sink_ignored@2"), Verdict::kSkipped);     // there is no such head
  EXPECT_EQ(verdict("gqa_interleaved@0"), Verdict::kSkipped);  // takes other groups' keys
  EXPECT_EQ(verdict("layout_swapped@0"), Verdict::kSkipped);
  EXPECT_EQ(verdict("sink_permuted@1"), Verdict::kFailed);
}

TEST(Faults, AreFoundByName) {
  for (const char* name : {"fault:dq_scaled@:sink_kernel", "fault:dq_scaled@x:sink_kernel",
                           "fault:dq_scaled@-1:sink_kernel", "fault:dq_scaled@1x:sink_kernel"})
    EXPECT_THROW(find_path(name, Case{}), InputError) << name;
  EXPECT_EQ(find_fault("dq_scaled").name, "dq_scaled");
  EXPECT_THROW(find_fault("dq_sacled"), InputError);
  EXPECT_THROW(find_path("fault:dq_scaled", Case{}), InputError);
  EXPECT_THROW(find_path("fault:dq_scaled:nothing", Case{}), InputError);
}

}  // namespace
}  // namespace sinkscope
