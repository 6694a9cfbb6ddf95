// SPDX-License-Identifier: Apache-2.0
// What the command prints, to the letter. After a change that is meant, SINKSCOPE_RENEW=1 writes the files anew:
//   SINKSCOPE_RENEW=1 build/tests/tools_golden_test && git diff tests/tools/golden
#include <cstdlib>

#include "tests/tools/command.hpp"

namespace sinkscope::tools {
namespace {

struct Golden {
  const char* name;
  const char* arguments;
  int code;
};

void PrintTo(const Golden& golden, std::ostream* out) {
  *out << "sinkscope " << golden.arguments;
}

class GoldenOutput : public CommandTest, public testing::WithParamInterface<Golden> {};

// One instruction set for all machines, and no path whose numbers belong to a machine.
TEST_P(GoldenOutput, IsAsWrittenDown) {
  const Ran ran = sinkscope(GetParam().arguments, "SINKSCOPE_DEVICE=cpu SINKSCOPE_ISA=avx2");
  EXPECT_EQ(ran.code, GetParam().code) << ran.err;
  const fs::path file = fs::path("tests/tools/golden") / (std::string(GetParam().name) + ".txt");
  if (std::getenv("SINKSCOPE_RENEW") != nullptr) std::ofstream(file) << ran.out << ran.err;
  EXPECT_EQ(ran.out + ran.err, content_of(file)) << "renew with SINKSCOPE_RENEW=1 if the change is meant";
}

INSTANTIATE_TEST_SUITE_P(
    Commands, GoldenOutput,
    testing::Values(
        Golden{"help", "--help", 0}, Golden{"help_compare", "compare --help", 0},
        Golden{"help_gate", "gate --help", 0}, Golden{"help_diff", "diff --help", 0},
        Golden{"help_generate", "generate --help", 0}, Golden{"help_faults", "faults --help", 0},
        Golden{"help_explain", "explain --help", 0}, Golden{"help_bench", "bench --help", 0},
        Golden{"help_spike", "spike --help", 0}, Golden{"spike_list", "spike --list", 0},
        Golden{"list_causes", "list causes", 0}, Golden{"list_paths", "list paths", 0},
        Golden{"list_metrics", "list metrics", 0}, Golden{"list_gates", "list gates", 0},
        Golden{"list_suites", "list suites", 0}, Golden{"list_faults", "list faults", 0},
        Golden{"compare_capture",
               "compare datasets/captures/calm_layer1.safetensors --paths "
               "sink_kernel,recorded.eager,recorded.flash_attention_2",
               0},
        Golden{"compare_quiet",
               "compare datasets/captures/packed_layer1.safetensors --paths sink_kernel --quiet", 0},
        Golden{"compare_verbose",
               "compare 'b1 hq2 hkv1 sq64 sk64 d64 bf16 causal seed=3' --paths sink_kernel -v", 0},
        Golden{"compare_colour",
               "compare 'b1 hq2 hkv1 sq64 sk64 d64 bf16 causal seed=3' --paths fault:dq_scaled:sink_kernel "
               "--color always",
               1},
        Golden{
            "compare_fault",
            "compare 'b1 hq4 hkv2 sq64 sk64 d64 bf16 causal seed=3' --paths fault:dq_head_lost:sink_kernel",
            1},
        Golden{"explain_fault",
               "explain 'b1 hq4 hkv2 sq64 sk64 d64 bf16 causal seed=3' --quiet --paths "
               "fault:sink_ignored:sink_kernel,fault:dq_head_lost:sink_kernel,sink_kernel",
               0},
        Golden{"compare_skipped", "compare 'sq64 sink=none' --paths fault:sink_ignored:sink_kernel", 3},
        Golden{"completion_bash", "completion bash", 0}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace sinkscope::tools
