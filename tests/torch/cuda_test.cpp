// SPDX-License-Identifier: Apache-2.0
// The libtorch paths on a GPU: flash attention 2's own masks against the truth, eager beside its CPU twin, and what is
// laid out to be timed.
#include <cmath>
#include <cstdlib>
#include <map>
#include <string>

#include "gtest/gtest.h"

#include "src/compare/compare.hpp"
#include "src/paths/table.hpp"
#include "src/torch/module.hpp"
#include "tests/require_gpu.hpp"

namespace sinkscope {
namespace {

Case generated(const std::string& line) {
  return generate_case(parse_problem(line), "test");
}

const Gate& default_gate() {
  static const Gate kGate = read_gate("reports/gates/default.toml");
  return kGate;
}

PathResult compared(const Case& c, const std::string& path) {
  CompareOptions options;
  options.paths = {path};
  return compare_case(c, default_gate(), options).paths.at(0);
}

// Every tensor of a path on the GPU passes but for those that are named.
void expect_verdicts(const std::string& line, const std::string& path,
                     const std::map<std::string, Verdict>& but_for = {}) {
  const PathResult result = compared(generated(line), path);
  EXPECT_TRUE(result.backend.starts_with("cuda ")) << result.backend << " " << line;
  ASSERT_FALSE(result.verdicts.empty());
  for (const VerdictRow& row : result.verdicts) {
    const auto named = but_for.find(row.tensor);
    EXPECT_EQ(text(row.verdict), text(named == but_for.end() ? Verdict::kPassed : named->second))
        << path << " " << row.tensor << " " << row.metric << " " << row.value << ", limit " << row.limit
        << " at " << place_of(row) << " " << row.reason << ": " << line;
  }
}

// Relative L2 distance.
double distance(const Tensor& got, const Tensor& ref) {
  const std::vector<double> a = got.widened(), b = ref.widened();
  double err2 = 0, ref2 = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    err2 += (a[i] - b[i]) * (a[i] - b[i]);
    ref2 += b[i] * b[i];
  }
  return std::sqrt(err2 / ref2);
}

class Gpu {
 protected:
  static void require() {
    const TorchModule& torch = torch_module();
    require_gpu(torch.unavailable.empty() ? torch.cuda_unavailable : torch.unavailable);
  }
};

class TorchOnGpu : public testing::Test, Gpu {
 protected:
  void SetUp() override { require(); }
};

class FlashOnGpu : public testing::TestWithParam<const char*>, Gpu {
 protected:
  void SetUp() override { require(); }
};

TEST_P(FlashOnGpu, WithTheSinkPassesTheGate) {
  expect_verdicts(GetParam(), "flash_attention_2_sink");
}

TEST_P(FlashOnGpu, WithoutASinkPassesTheGate) {
  expect_verdicts(std::string(GetParam()) + " sink=none", "flash_attention_2");
}

INSTANTIATE_TEST_SUITE_P(
    Lines, FlashOnGpu,
    testing::Values("b2 hq4 hkv4 sq200 sk200 d64 bf16 causal seed=1",
                    "b1 hq4 hkv4 sq200 sk200 d64 bf16 causal layout=bshd seed=2",
                    "b1 hq2 hkv2 sq150 sk260 d128 bf16 full seed=3",
                    "b2 hq4 hkv4 sq150 sk260 d64 fp16 causal seed=4",
                    "b1 hq4 hkv4 sq300 sk300 d64 bf16 causal w64 seed=5",
                    "b1 hq2 hkv2 sq200 sk333 d128 fp16 causal w129 seed=6",
                    "b1 hq4 hkv2 sq200 sk200 d64 bf16 causal scale=0.3 seed=7",
                    "b1 hq8 hkv1 sq200 sk200 d64 bf16 causal seed=8",
                    "b1 hq8 hkv1 sq1 sk300 d64 bf16 causal seed=9",
                    "b1 hq4 hkv4 sq300 sk300 d64 bf16 causal docs=100,37,163 seed=10",
                    "b1 hq4 hkv2 sq300 sk300 d64 bf16 causal w32 docs=100,37,163 layout=bshd seed=11",
                    "b1 hq4 hkv2 d64 bf16 causal docs=130,0,60,70 docs_k=130,40,60,90 seed=12",
                    "b1 hq4 hkv4 d128 fp16 full docs=100,0,70 docs_k=120,30,64 seed=13"));

// Where rows see no key: before the first one, and in documents without any.
TEST_F(TorchOnGpu, FlashKnowsRowsWithoutKeys) {
  for (const std::string line :
       {"b2 hq4 hkv4 sq260 sk90 d64 bf16 causal seed=1", "b1 hq4 hkv2 sq260 sk90 d64 bf16 causal w20 seed=2",
        "b1 hq4 hkv4 d64 bf16 causal docs=130,50,80 docs_k=130,0,20 seed=3",
        "b1 hq4 hkv4 d64 bf16 full docs=1,1,0,1 docs_k=3,0,2,1 seed=4",
        "b1 hq2 hkv1 d64 bf16 full docs=1,0,1 docs_k=3,2,1 seed=5"}) {
    expect_verdicts(line, "flash_attention_2_sink");
    expect_verdicts(line + " sink=none", "flash_attention_2");
  }
  // No row sees a key. Sinks of -inf leave such rows nothing at all, and their own gradient is 0.
  const std::map<std::string, Verdict> all_zero = {
      {"out", Verdict::kMistrusted}, {"dq", Verdict::kMistrusted},     {"dk", Verdict::kMistrusted},
      {"dv", Verdict::kMistrusted},  {"dsinks", Verdict::kMistrusted},
  };
  expect_verdicts("b1 hq2 hkv2 d64 bf16 full docs=5,0 docs_k=0,4 seed=6", "flash_attention_2_sink", all_zero);
  expect_verdicts("b1 hq4 hkv4 sq260 sk90 d64 bf16 causal w20 sink=-inf seed=7", "flash_attention_2_sink",
                  {{"dsinks", Verdict::kMistrusted}});
}

TEST_F(TorchOnGpu, FlashRescaledDropsTheGradientOfTheLse) {
  const std::map<std::string, Verdict> wrong = {{"dq", Verdict::kFailed}, {"dk", Verdict::kFailed}};
  expect_verdicts("b1 hq4 hkv4 sq256 sk256 d64 bf16 causal seed=1", "flash_attention_2_rescaled", wrong);
  expect_verdicts("b1 hq4 hkv4 sq256 sk100 d64 bf16 causal dlse seed=2", "flash_attention_2_rescaled", wrong);
}

TEST_F(TorchOnGpu, EagerIsWhatItIsOnTheCpu) {
  for (const char* line : {"b1 hq8 hkv2 sq256 sk256 d64 bf16 causal w100 seed=1",
                           "b2 hq4 hkv2 sq130 sk200 d128 fp16 full seed=2",
                           "b1 hq4 hkv4 sq200 sk200 d64 bf16 causal docs=90,0,110 sink=none seed=3",
                           "b1 hq4 hkv2 sq200 sk200 d64 fp32 causal seed=4"}) {
    for (const char* name : {"eager", "eager_fp32"}) {
      const Case c = generated(line);
      const Path path = find_path(name, c);
      const PathRun on_gpu = path.run(c, {}), on_cpu = path.run(c, {.cpu_only = true});
      EXPECT_TRUE(on_gpu.backend.starts_with("cuda ")) << on_gpu.backend;
      EXPECT_TRUE(on_cpu.backend.starts_with("cpu ")) << on_cpu.backend;
      // Sums in another order now and then round the other way: a few elements by one unit.
      const double limit = c.problem.shape.dtype == DType::kFp32 ? 1e-5 : 3e-3;
      for (const TensorName tensor : {TensorName::kOut, TensorName::kDq, TensorName::kDk, TensorName::kDv})
        EXPECT_LT(distance(on_gpu.outputs[tensor], on_cpu.outputs[tensor]), limit)
            << name << " " << text(tensor) << ": " << line;
    }
  }
}

// What is laid out to be timed computes what is judged; dq of flash attention to the order of its sum.
TEST_F(TorchOnGpu, PreparedPathsComputeTheSame) {
  for (const char* line : {"b2 hq4 hkv2 sq200 sk200 d64 bf16 causal layout=bshd seed=1",
                           "b1 hq4 hkv4 sq300 sk120 d64 bf16 causal w40 layout=bshd seed=2",
                           "b1 hq4 hkv4 sq200 sk200 d64 bf16 causal docs=90,0,110 layout=bshd seed=3"}) {
    const Case c = generated(line);
    for (const Path& path : torch_module().paths) {
      ASSERT_TRUE(path.prepare) << path.name;
      const PathRun run = path.run(c, {});
      const PreparedPath prepared = path.prepare(c);
      EXPECT_EQ(prepared.backend, run.backend);
      prepared.forward();
      EXPECT_FALSE(prepared.outputs().dq.given());
      for (int i = 0; i < 2; ++i) {
        prepared.forward();
        prepared.backward();
      }
      const Outputs outputs = prepared.outputs();
      for (const TensorName tensor : kTensorNames) {
        ASSERT_EQ(outputs[tensor].given(), run.outputs[tensor].given()) << path.name << " " << text(tensor);
        if (!outputs[tensor].given()) continue;
        if (tensor == TensorName::kDq && path.name.starts_with("flash")) {
          EXPECT_LT(distance(outputs.dq, run.outputs.dq), 1e-3) << path.name << ": " << line;
        } else {
          EXPECT_TRUE(bitwise_equal(outputs[tensor], run.outputs[tensor]))
              << path.name << " " << text(tensor) << " " << distance(outputs[tensor], run.outputs[tensor])
              << ": " << line;
        }
      }
    }
  }
}

TEST_F(TorchOnGpu, PreparedWithoutABackwardHasNone) {
  const Case c = generated("b1 hq2 hkv2 sq64 sk64 d64 bf16 causal grads=none");
  for (const Path& path : torch_module().paths) {
    const PreparedPath prepared = path.prepare(c);
    EXPECT_FALSE(prepared.backward) << path.name;
    prepared.forward();
    EXPECT_TRUE(bitwise_equal(prepared.outputs().out, path.run(c, {}).outputs.out)) << path.name;
  }
}

TEST_F(TorchOnGpu, TakesTheDeviceThatIsWanted) {
  const Case bf16 = generated("b1 hq2 hkv2 sq64 sk64 d64 bf16 causal");
  const Case fp32 = generated("b1 hq2 hkv2 sq64 sk64 d64 fp32 causal");
  const Path flash = find_path("flash_attention_2", bf16), eager = find_path("eager", bf16);
  EXPECT_TRUE(flash.run(bf16, {}).backend.starts_with("cuda "));
  EXPECT_TRUE(flash.run(fp32, {}).backend.starts_with("cpu "));
  EXPECT_TRUE(eager.run(fp32, {}).backend.starts_with("cuda "));
  ::setenv("SINKSCOPE_DEVICE", "cuda", 1);
  EXPECT_NE(flash.unsupported(fp32).value_or("").find("saw fp32"), std::string::npos);
  EXPECT_FALSE(flash.unsupported(bf16).has_value());
  ::setenv("SINKSCOPE_DEVICE", "cpu", 1);
  EXPECT_TRUE(flash.run(bf16, {}).backend.starts_with("cpu "));
  ::unsetenv("SINKSCOPE_DEVICE");
}

TEST_F(TorchOnGpu, Multiplies) {
  const std::function<void()> multiply = torch_module().cuda_gemm(512);
  multiply();
  multiply();
  const Case c = generated("b1 hq2 hkv2 sq64 sk64 d64 bf16 causal");
  EXPECT_NO_THROW(find_path("flash_attention_2", c).run(c, {}));  // a failed product would be noticed here
}

}  // namespace
}  // namespace sinkscope
