// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "gtest/gtest.h"

#include "src/gate/gate.hpp"
#include "src/gate/student.hpp"

namespace sinkscope {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Gate gate_of_test() {
  Gate gate;
  gate.formats[DType::kBf16] = {{1, 3, 4}, {2, INFINITY, 5}, 2.2, 0.35};
  return gate;
}

// Four good heads of one tensor.
TensorMetrics good(TensorName name = TensorName::kDq) {
  TensorMetrics metrics{name, 2, 2, 1 << 20, std::vector<HeadMetrics>(4)};
  for (HeadMetrics& head : metrics.heads) {
    head.z_rms = 0.4;
    head.z_row = 1;
    head.z_max = 2;
  }
  return metrics;
}

VerdictRow judged(const TensorMetrics& metrics) {
  return judge(gate_of_test(), DType::kBf16, metrics);
}

TEST(Judge, PassesAndShowsTheNearestToItsLimit) {
  TensorMetrics metrics = good();
  metrics.heads[3].z_row = 2.9;
  metrics.heads[3].z_row_at = 17;
  const VerdictRow row = judged(metrics);
  EXPECT_EQ(row.verdict, Verdict::kPassed);
  EXPECT_EQ(row.metric, "z_row");
  EXPECT_EQ(row.batch, 1);
  EXPECT_EQ(row.head, 1);
  EXPECT_EQ(row.row, 17);
  EXPECT_EQ(row.value, 2.9);
  EXPECT_EQ(row.limit, 3);
  EXPECT_EQ(row.failed_heads, 0);
}

TEST(Judge, FailsOnEveryStatistic) {
  const auto expect = [](const char* metric, void (*spoil)(HeadMetrics&)) {
    TensorMetrics metrics = good();
    spoil(metrics.heads[2]);
    const VerdictRow row = judged(metrics);
    EXPECT_EQ(row.verdict, Verdict::kFailed) << metric;
    EXPECT_EQ(row.metric, metric);
    EXPECT_EQ(row.batch, 1) << metric;
    EXPECT_EQ(row.head, 0) << metric;
    EXPECT_EQ(row.failed_heads, 1) << metric;
  };
  expect("z_rms", [](HeadMetrics& m) { m.z_rms = 1.01; });
  expect("z_row", [](HeadMetrics& m) { m.z_row = 3.01; });
  expect("z_max", [](HeadMetrics& m) { m.z_max = 4.01; });
  expect("z_rms", [](HeadMetrics& m) { m.z_rms = kNaN; });
  expect("z_max", [](HeadMetrics& m) { m.z_max = INFINITY; });
  expect("nonfinite", [](HeadMetrics& m) { m.nonfinite_mismatch = 1; });
  expect("repeatable", [](HeadMetrics& m) { m.repeatable = false; });
  expect("bias_z", [](HeadMetrics& m) {
    m.bias_t = 30;
    m.bias_z = 0.4;
  });
}

TEST(Judge, BiasMustBeSignificantAndLarge) {
  TensorMetrics metrics = good();
  metrics.heads[0].bias_z = 0.9;
  metrics.heads[0].bias_t = 3;  // p = 0.009 of one head among four
  EXPECT_EQ(judged(metrics).verdict, Verdict::kPassed);
  metrics.heads[0].bias_t = 30;
  EXPECT_EQ(judged(metrics).verdict, Verdict::kFailed);
  metrics.heads[0].bias_z = 0.2;
  EXPECT_EQ(judged(metrics).verdict, Verdict::kPassed);
}

TEST(Judge, SinksAndLseHaveLimitsOfTheirOwn) {
  TensorMetrics dsinks = good(TensorName::kDsinks);
  dsinks.heads[0].z_rms = dsinks.heads[0].z_row = 100;
  EXPECT_EQ(judged(dsinks).verdict, Verdict::kPassed) << "one number has no rms";
  dsinks.heads[0].z_max = 2.3;
  EXPECT_EQ(judged(dsinks).verdict, Verdict::kFailed);
  TensorMetrics lse = good(TensorName::kLse);
  lse.heads[0].z_row = 100;
  EXPECT_EQ(judged(lse).verdict, Verdict::kPassed) << "a row of lse is one number";
  lse.heads[0].z_max = 5.1;
  EXPECT_EQ(judged(lse).verdict, Verdict::kFailed);
}

TEST(Judge, AllowsTheRmsOfFewRowsToScatter) {
  TensorMetrics metrics = good();
  metrics.rows = 2;
  metrics.heads[0].z_rms = 1.99;  // 1 + 2 / 2 times the limit of 1
  EXPECT_EQ(judged(metrics).verdict, Verdict::kPassed);
  metrics.heads[0].z_rms = 2.01;
  EXPECT_EQ(judged(metrics).verdict, Verdict::kFailed);
}

TEST(Judge, MistrustsWhatCouldNotFail) {
  TensorMetrics metrics = good();
  for (HeadMetrics& head : metrics.heads) head.ref_all_zero = true;
  EXPECT_EQ(judged(metrics).verdict, Verdict::kMistrusted);
  metrics.heads[1].ref_all_zero = false;
  EXPECT_EQ(judged(metrics).verdict, Verdict::kPassed);
}

VerdictRow row_of(Verdict verdict, bool judged = true) {
  VerdictRow row;
  row.verdict = verdict;
  row.judged = judged;
  return row;
}

TEST(ExitCodes, FollowTheOrderOfPrecedence) {
  using enum Verdict;
  EXPECT_EQ(exit_code({row_of(kPassed)}), ExitCode::kPassed);
  EXPECT_EQ(exit_code({row_of(kPassed), row_of(kFailed, false)}), ExitCode::kPassed);
  EXPECT_EQ(exit_code({row_of(kPassed), row_of(kInconclusive)}), ExitCode::kInconclusive);
  EXPECT_EQ(exit_code({row_of(kPassed), row_of(kMistrusted)}), ExitCode::kInconclusive);
  EXPECT_EQ(exit_code({row_of(kInconclusive), row_of(kFailed)}), ExitCode::kFailed);
  EXPECT_EQ(exit_code({row_of(kFailed), row_of(kError)}), ExitCode::kInternal);
  EXPECT_EQ(exit_code({row_of(kSkipped), row_of(kPassed)}), ExitCode::kPassed);
  EXPECT_EQ(exit_code({row_of(kSkipped)}), ExitCode::kEnvironment);
  EXPECT_EQ(exit_code({row_of(kFailed, false)}), ExitCode::kEnvironment) << "nothing was judged";
  EXPECT_EQ(exit_code({}), ExitCode::kEnvironment);
}

TEST(Verdicts, HaveNamesThatComeBack) {
  for (const Verdict verdict : {Verdict::kPassed, Verdict::kFailed, Verdict::kMistrusted,
                                Verdict::kInconclusive, Verdict::kSkipped, Verdict::kError}) {
    EXPECT_EQ(verdict_from_text(text(verdict)), verdict);
  }
  EXPECT_THROW(verdict_from_text("fine"), InputError);
}

// Critical values of Student's t (two-sided) from any table.
TEST(Student, KnowsTheTables) {
  EXPECT_NEAR(student_two_sided(2.131, 15), 0.05, 1e-4);
  EXPECT_NEAR(student_two_sided(-2.947, 15), 0.01, 1e-4);
  EXPECT_NEAR(student_two_sided(4.073, 15), 0.001, 1e-5);
  EXPECT_NEAR(student_two_sided(12.706, 1), 0.05, 1e-4);
  EXPECT_NEAR(student_two_sided(1.960, 1e6), 0.05, 1e-4);
  EXPECT_DOUBLE_EQ(student_two_sided(0, 15), 1);
  EXPECT_EQ(student_two_sided(INFINITY, 15), 0);
}

}  // namespace
}  // namespace sinkscope
