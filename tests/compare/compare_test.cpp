// SPDX-License-Identifier: Apache-2.0
// The whole comparison on made-up paths: every way in which a path can go wrong has its verdict.
#include "src/compare/compare.hpp"

#include <cmath>
#include <string>

#include "gtest/gtest.h"

#include "src/compare/sentences.hpp"
#include "src/core/error.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {
namespace {

const char* const kLine = "b1 hq4 hkv2 sq80 sk80 d16 fp32 causal seed=4";

Case test_case(const std::string& line = kLine) {
  return generate_case(parse_problem(line), "p0001");
}

Tensor rounded(const Case& c, const std::vector<double>& values, std::vector<std::int64_t> shape) {
  return Tensor::rounded(c.problem.shape.dtype, std::move(shape), values);
}

// What an ideal implementation gives: the truth, rounded once.
Outputs ideal(const Case& c) {
  const Truth truth = compute_truth(c);
  const AttentionShape& s = c.problem.shape;
  Outputs outputs;
  outputs.out = rounded(c, truth.value.out, {s.b, s.hq, s.sq, s.d});
  outputs.lse = Tensor::rounded(DType::kFp32, {s.b, s.hq, s.sq}, truth.value.lse);
  outputs.dq = rounded(c, truth.value.dq, {s.b, s.hq, s.sq, s.d});
  outputs.dk = rounded(c, truth.value.dk, {s.b, s.hkv, s.sk, s.d});
  outputs.dv = rounded(c, truth.value.dv, {s.b, s.hkv, s.sk, s.d});
  outputs.dsinks = Tensor::rounded(DType::kFp32, {s.hq}, truth.value.dsinks);
  return outputs;
}

using Spoil = std::function<void(const Case&, Outputs&)>;

Path fake_path(Spoil spoil, const std::string& name = "mine") {
  Path path;
  path.name = name;
  path.unsupported = [](const Case&) { return std::optional<std::string>(); };
  path.run = [spoil](const Case& c, const PathOptions&) {
    PathRun run{ideal(c), "cpu test"};
    spoil(c, run.outputs);
    return run;
  };
  return path;
}

CaseResult compared(const Case& c, const std::vector<Path>& paths, const CompareOptions& options = {}) {
  return compare_case(c, read_gate("reports/gates/default.toml"), options, paths, {});
}

const VerdictRow& row_of(const PathResult& path, const std::string& tensor) {
  for (const VerdictRow& row : path.verdicts) {
    if (row.tensor == tensor) return row;
  }
  throw std::runtime_error("no row for " + tensor);
}

TEST(Compare, TheTruthRoundedOncePasses) {
  for (const char* line : {kLine, "b2 hq4 hkv1 sq70 sk90 d16 bf16 causal w20 dlse seed=5",
                           "hq2 hkv2 d16 fp16 causal docs=40,0,30 sink=extreme seed=6"}) {
    const CaseResult result = compared(test_case(line), {fake_path([](const Case&, Outputs&) {})});
    ASSERT_EQ(result.paths.at(0).verdicts.size(), 6U);
    for (const VerdictRow& row : result.paths[0].verdicts)
      EXPECT_EQ(row.verdict, Verdict::kPassed)
          << line << " " << row.tensor << " " << row.metric << " " << row.value;
  }
}

TEST(Compare, OneHeadOfOneTensorIsFound) {
  const CaseResult result = compared(test_case(), {fake_path([](const Case& c, Outputs& outputs) {
                                       const std::int64_t head = c.problem.shape.sq * c.problem.shape.d;
                                       for (std::int64_t i = 3 * head; i < 4 * head; ++i)
                                         outputs.dq.set(i, 1.001 * outputs.dq.at(i));
                                     })});
  const VerdictRow& row = row_of(result.paths.at(0), "dq");
  EXPECT_EQ(row.verdict, Verdict::kFailed);
  EXPECT_EQ(row.head, 3);
  EXPECT_EQ(row.failed_heads, 1);
  EXPECT_EQ(row.repro, std::string("sinkscope compare '") + kLine + "' --paths 'mine'");
  EXPECT_EQ(row_of(result.paths[0], "dk").verdict, Verdict::kPassed);
}

TEST(Compare, NanFailsAndIsSaid) {
  const CaseResult result =
      compared(test_case(), {fake_path([](const Case&, Outputs& outputs) { outputs.out.set(37, NAN); })});
  const VerdictRow& row = row_of(result.paths.at(0), "out");
  EXPECT_EQ(row.verdict, Verdict::kFailed);
  EXPECT_EQ(row.metric, "nonfinite");
  EXPECT_EQ(row.row, 2);
  EXPECT_NE(result.paths[0].sentences.at(0).find("NaN"), std::string::npos);
}

TEST(Compare, AMissingTensorFails) {
  const CaseResult result =
      compared(test_case(), {fake_path([](const Case&, Outputs& outputs) { outputs.dsinks = {}; })});
  EXPECT_EQ(row_of(result.paths.at(0), "dsinks").verdict, Verdict::kFailed);
  EXPECT_EQ(row_of(result.paths[0], "dsinks").metric, "missing");
  EXPECT_EQ(result.paths[0].sentences.at(0), "mine gives the sink no gradient");
}

TEST(Compare, ATensorOfAnotherShapeIsAnError) {
  const CaseResult result = compared(test_case(), {fake_path([](const Case&, Outputs& outputs) {
                                       outputs.dq = Tensor(DType::kFp32, {1, 4, 79, 16});
                                     })});
  EXPECT_EQ(result.paths.at(0).verdicts.at(0).verdict, Verdict::kError);
  EXPECT_NE(result.paths[0].verdicts[0].reason.find("[1, 4, 79, 16]"), std::string::npos);
}

TEST(Compare, AnExceptionIsAnErrorOfThatPathOnly) {
  const Path broken =
      fake_path([](const Case&, Outputs&) { throw std::runtime_error("segment lost"); }, "broken");
  const CaseResult result = compared(test_case(), {broken, fake_path([](const Case&, Outputs&) {})});
  EXPECT_EQ(result.paths.at(0).verdicts.at(0).verdict, Verdict::kError);
  EXPECT_EQ(result.paths[0].verdicts[0].reason, "segment lost");
  EXPECT_EQ(row_of(result.paths.at(1), "out").verdict, Verdict::kPassed);
}

TEST(Compare, RepeatsMustGiveTheSameBits) {
  int runs = 0;
  const Path path = fake_path([&runs](const Case&, Outputs& outputs) {
    if (++runs > 1) outputs.dv.set(0, std::nextafter(static_cast<float>(outputs.dv.at(0)), 1.0F));
  });
  EXPECT_EQ(row_of(compared(test_case(), {path}).paths.at(0), "dv").metric, "repeatable");
  runs = 0;
  CompareOptions once;
  once.repeat = 1;
  EXPECT_EQ(row_of(compared(test_case(), {path}, once).paths.at(0), "dv").verdict, Verdict::kPassed);
}

TEST(Compare, UnfitInputsAreInconclusive) {
  Case c = test_case();
  c.v.set(5, NAN);
  const CaseResult result = compared(c, {fake_path([](const Case&, Outputs&) {})});
  EXPECT_EQ(result.paths.at(0).verdicts.at(0).verdict, Verdict::kInconclusive);
  EXPECT_NE(result.paths[0].verdicts[0].reason.find("v has 1 NaN"), std::string::npos);
  EXPECT_EQ(exit_code(result.paths[0].verdicts), ExitCode::kInconclusive);
}

TEST(Compare, SkipsSayWhy) {
  Path path = fake_path([](const Case&, Outputs&) {});
  path.unsupported = [](const Case&) { return std::optional<std::string>("needs another machine"); };
  const CaseResult result = compared(test_case(), {path});
  EXPECT_EQ(result.paths.at(0).verdicts.at(0).verdict, Verdict::kSkipped);
  EXPECT_EQ(result.paths[0].verdicts[0].reason, "needs another machine");
}

TEST(Compare, RequiredPathsMustHaveRun) {
  const std::vector<Path> paths = {fake_path([](const Case&, Outputs&) {})};
  const CaseResult result = compared(test_case(), paths);
  EXPECT_TRUE(unmet_requirements(result, {"mine", "mine:cpu"}).empty());
  const std::vector<std::string> unmet = unmet_requirements(result, {"mine:cuda", "other"});
  ASSERT_EQ(unmet.size(), 2U);
  EXPECT_NE(unmet[0].find("required on cuda but ran on cpu"), std::string::npos) << unmet[0];
  EXPECT_NE(unmet[1].find("other is required but was not among the paths"), std::string::npos) << unmet[1];
}

TEST(Sentences, NameTheMistake) {
  const auto sentences = [](const Spoil& spoil) {
    return compared(test_case(), {fake_path(spoil)}).paths.at(0).sentences;
  };
  EXPECT_TRUE(sentences([](const Case&, Outputs&) {}).empty());
  const auto ignored = sentences([](const Case& c, Outputs& outputs) {
    Case sinkless = c;
    sinkless.sinks = {};
    outputs = ideal(sinkless);
  });
  EXPECT_NE(ignored.at(0).find("mine ignores the sink: head"), std::string::npos) << ignored[0];
  const auto lost = sentences([](const Case& c, Outputs& outputs) {
    const std::int64_t head = c.problem.shape.sk * c.problem.shape.d;
    for (std::int64_t i = head; i < 2 * head; ++i) outputs.dk.set(i, 0);
  });
  EXPECT_EQ(lost.at(0), "mine dk: kv head 1 is lost, it is zero everywhere");
  const auto scaled = sentences([](const Case&, Outputs& outputs) {
    for (std::int64_t i = 0; i < outputs.dq.size(); ++i) outputs.dq.set(i, 2 * outputs.dq.at(i));
  });
  EXPECT_EQ(scaled.at(0), "mine dq is 2.000x the truth in every head");
  const auto off =
      sentences([](const Case&, Outputs& outputs) { outputs.out.set(0, outputs.out.at(0) + 1e-3); });
  EXPECT_NE(off.at(0).find("mine: out is over the limits, farthest out of head 0 row 0: z_max"),
            std::string::npos)
      << off[0];
}

TEST(Rejudge, FollowsTheNewGate) {
  CaseResult result =
      compared(test_case(), {fake_path([](const Case&, Outputs& outputs) { outputs.dsinks = {}; })});
  Gate gate = read_gate("reports/gates/default.toml");
  judge_only(gate, {"other"});
  rejudge(result, gate);
  EXPECT_FALSE(result.paths.at(0).verdicts.at(0).judged);
  EXPECT_EQ(row_of(result.paths[0], "dsinks").metric, "missing") << "what was missing stays missing";
  gate.formats[DType::kFp32].tensors.z_rms = 1e-9;
  rejudge(result, gate);
  EXPECT_EQ(row_of(result.paths[0], "dq").verdict, Verdict::kFailed);
}

TEST(Compare, ReproducesWithTheTruthThatItUsed) {
  CaseResult result = compared(test_case(), {fake_path([](const Case&, Outputs&) {})});
  EXPECT_EQ(result.truth, "eigen");
  result.truth = "cuda";
  rejudge(result, read_gate("reports/gates/default.toml"));
  EXPECT_TRUE(row_of(result.paths[0], "dq").repro.ends_with("--paths 'mine' --truth cuda"));
}

TEST(Compare, RefusesATruthThatIsNotHere) {
  if (unavailable(TruthKind::kCuda).empty()) GTEST_SKIP() << "there is a GPU";
  CompareOptions options;
  options.truth = TruthKind::kCuda;
  EXPECT_THROW(compared(test_case(), {}, options), EnvironmentError);
}

}  // namespace
}  // namespace sinkscope
