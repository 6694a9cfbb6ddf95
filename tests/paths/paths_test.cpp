// SPDX-License-Identifier: Apache-2.0
#include <set>
#include <string>

#include "gtest/gtest.h"

#include "src/core/error.hpp"
#include "src/paths/table.hpp"

namespace sinkscope {
namespace {

Case generated(const std::string& line) {
  return generate_case(parse_problem(line), "test");
}

TEST(Paths, AreTheDocumentedOnes) {
  std::set<std::string> names;
  for (const Path& path : all_paths()) {
    names.insert(path.name);
    EXPECT_FALSE(path.summary.empty()) << path.name;
  }
  EXPECT_EQ(names, (std::set<std::string>{"sink_kernel", "flash_attention_2", "flash_attention_2_sink",
                                          "flash_attention_2_rescaled", "eager", "eager_fp32"}));
}

TEST(Paths, AnUnknownNameListsTheKnownOnes) {
  try {
    find_path("sink_kernal", Case{});
    FAIL() << "found";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("sink_kernal"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("flash_attention_2_sink"), std::string::npos) << error.what();
  }
  EXPECT_THROW(find_path("recorded.nothing", Case{}), InputError);
}

TEST(Paths, RecordedOutputsAreGivenBack) {
  Case c = generated("hq2 hkv1 sq8 sk8 d8 fp32");
  c.recorded["mine"].out = Tensor(DType::kFp32, {1, 2, 8, 8});
  const PathRun run = find_path("recorded.mine", c).run(c, {});
  EXPECT_EQ(run.backend, "recorded");
  EXPECT_TRUE(run.outputs.out.given());
  EXPECT_FALSE(run.outputs.dq.given());
}

TEST(SinkKernel, GivesWhatIsAskedFor) {
  const Path path = find_path("sink_kernel", Case{});
  const Outputs outputs = path.run(generated("hq2 hkv1 sq16 sk16 d64 grads=k,s"), {}).outputs;
  EXPECT_TRUE(outputs.out.given());
  EXPECT_TRUE(outputs.lse.given());
  EXPECT_FALSE(outputs.dq.given());
  EXPECT_TRUE(outputs.dk.given());
  EXPECT_FALSE(outputs.dv.given());
  EXPECT_TRUE(outputs.dsinks.given());
  EXPECT_FALSE(path.run(generated("hq2 hkv1 sq16 sk16 d64 grads=none"), {}).outputs.dk.given());
  EXPECT_FALSE(path.run(generated("hq2 hkv1 sq16 sk16 d64 sink=none"), {}).outputs.dsinks.given());
}

// The same case in both layouts: the same bits.
TEST(SinkKernel, LayoutsAgree) {
  const Path path = find_path("sink_kernel", Case{});
  const Outputs heads_first = path.run(generated("b2 hq4 hkv2 sq70 sk90 d64 bf16 causal seed=1"), {}).outputs;
  const Outputs rows_first =
      path.run(generated("b2 hq4 hkv2 sq70 sk90 d64 bf16 causal layout=bshd seed=1"), {}).outputs;
  for (const TensorName name : kTensorNames)
    EXPECT_TRUE(bitwise_equal(heads_first[name], rows_first[name])) << text(name);
}

TEST(SinkKernel, RefusesAnUnknownInstructionSet) {
  ::setenv("SINKSCOPE_ISA", "sse9", 1);
  EXPECT_THROW(find_path("sink_kernel", Case{}).run(generated("sq8 sk8"), {.cpu_only = true}), InputError);
  ::unsetenv("SINKSCOPE_ISA");
}

}  // namespace
}  // namespace sinkscope
