// SPDX-License-Identifier: Apache-2.0
// Machine-readable reports are well formed whatever the names in them.
#include <cmath>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "src/report/machine.hpp"
#include "src/report/terminal.hpp"

namespace sinkscope {
namespace {

VerdictRow row_of(Verdict verdict, bool judged, const std::string& tensor = "dq") {
  VerdictRow row;
  row.problem = "a<b>&\"c\"";
  row.path = "mine";
  row.tensor = tensor;
  row.verdict = verdict;
  row.judged = judged;
  row.metric = "z_max";
  row.value = NAN;
  row.limit = 4;
  row.repro = "sinkscope compare 'x' --paths 'mine'";
  return row;
}

CaseResult result_of(std::vector<VerdictRow> rows) {
  CaseResult result;
  result.name = "a<b>&\"c\"";
  result.problem_line = "b1 hq1";
  PathResult path;
  path.path = "mine";
  path.backend = "cpu";
  path.verdicts = std::move(rows);
  result.paths.push_back(std::move(path));
  return result;
}

TEST(Json, HoldsEveryVerdictAndTheExitCode) {
  Gate gate;
  gate.name = "g";
  const std::string text =
      to_json({result_of({row_of(Verdict::kFailed, true), row_of(Verdict::kPassed, true, "out")})},
              {{"version", "1"}}, gate);
  const nlohmann::json document = nlohmann::json::parse(text);
  EXPECT_EQ(document["format"], "sinkscope-verdicts");
  EXPECT_EQ(document["exit_code"], 1);
  EXPECT_EQ(document["run"]["version"], "1");
  const nlohmann::json& verdicts = document["cases"][0]["paths"][0]["verdicts"];
  ASSERT_EQ(verdicts.size(), 2U);
  EXPECT_EQ(verdicts[0]["verdict"], "failed");
  EXPECT_EQ(verdicts[0]["value"], "nan") << "JSON has no NaN";
}

TEST(JUnit, CountsAndEscapes) {
  const std::string xml = to_junit({result_of(
      {row_of(Verdict::kFailed, true), row_of(Verdict::kFailed, false), row_of(Verdict::kSkipped, true),
       row_of(Verdict::kError, true), row_of(Verdict::kMistrusted, true), row_of(Verdict::kPassed, true)})});
  EXPECT_NE(xml.find("tests=\"6\" failures=\"2\" errors=\"1\" skipped=\"2\""), std::string::npos) << xml;
  EXPECT_NE(xml.find("name=\"a&lt;b&gt;&amp;&quot;c&quot;: "), std::string::npos) << xml;
  EXPECT_EQ(xml.find("a<b"), std::string::npos);
}

TEST(Terminal, ColoursOnlyWhenAsked) {
  const std::vector<VerdictRow> rows = {row_of(Verdict::kFailed, true), row_of(Verdict::kPassed, true)};
  EXPECT_EQ(render_summary(rows, {.colour = false}).find('\x1b'), std::string::npos);
  EXPECT_NE(render_summary(rows, {.colour = true}).find('\x1b'), std::string::npos);
}

TEST(Terminal, SummaryShowsFailuresOfJudgedPathsOnly) {
  const std::string text =
      render_summary({row_of(Verdict::kFailed, true, "dq"), row_of(Verdict::kFailed, false, "dk")}, {});
  EXPECT_NE(text.find("mine dq"), std::string::npos) << text;
  EXPECT_EQ(text.find("mine dk"), std::string::npos) << text;
  EXPECT_NE(text.find("sinkscope compare 'x' --paths 'mine'"), std::string::npos) << text;
  EXPECT_NE(text.find("FAILED"), std::string::npos) << text;
}

}  // namespace
}  // namespace sinkscope
