// SPDX-License-Identifier: Apache-2.0
// The fault table as Markdown, JSON and three lines.
#include <algorithm>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "nlohmann/json.hpp"

#include "src/calibrate/fault_expectation.hpp"
#include "src/calibrate/fault_table.hpp"

namespace sinkscope {
namespace {

constexpr std::size_t kMostListed = 60;

constexpr std::string_view kHead =
    "| fault | planted | visible | gate | flash-attention | allclose | assert_close | cosine 0.99 | named "
    "rightly | in part "
    "| unexplained | wrongly | withheld | named all the same "
    "|\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";

std::string row_text(const std::string& name, const FaultTally& t, bool has_eager) {
  return fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n", name,
                     t.planted, t.visible, t.caught, has_eager ? fmt::format("{}", t.flash_attention) : "-",
                     t.allclose, t.assert_close, t.cosine, t.right, t.in_part, t.unexplained, t.wrong,
                     t.withheld, t.withheld_named);
}

// Of a healthy path every count is of false alarms.
std::string healthy_text(const FaultTally& t, bool has_eager) {
  return fmt::format("| {} | {} | | {} | {} | {} | {} | {} | | | | {} | | |\n", kHealthyRow, t.planted,
                     t.caught, has_eager ? fmt::format("{}", t.flash_attention) : "-", t.allclose,
                     t.assert_close, t.cosine, t.planted - t.right);
}

std::string table_text(const FaultTable& table, FaultTally FaultRow::*tally) {
  std::string text(kHead);
  for (const FaultRow& row : table.faults) {
    if (row.name == kHealthyRow)
      text += healthy_text(row.*tally, table.has_eager);
    else if ((row.*tally).planted > 0)
      text += row_text(row.name, row.*tally, table.has_eager);
  }
  return text;
}

std::string misses_text(const std::vector<FaultMiss>& misses) {
  std::string text;
  for (std::size_t i = 0; i < std::min(misses.size(), kMostListed); ++i)
    text += fmt::format("* `{}` on `{}`: {}\n", misses[i].fault, misses[i].problem_line, misses[i].what);
  if (misses.size() > kMostListed) text += fmt::format("* and {} more\n", misses.size() - kMostListed);
  return misses.empty() ? "None.\n" : text;
}

std::string problems_text(const FaultTable& table) {
  std::string text =
      "| problem, its first seed | seeds | planted in | planted | visible | gate | named rightly |\n"
      "|---|---|---|---|---|---|---|\n";
  for (const ProblemRow& row : table.problems) {
    const std::string where =
        row.quiet
            ? fmt::format("one group, {:.0f} times quieter than the loudest head or more", row.loudness_ratio)
            : "all heads";
    text += fmt::format("| `{}` | {} | {} | {} | {} | {} | {} |\n", row.line, row.seeds, where,
                        row.tally.planted, row.tally.visible, row.tally.caught, row.tally.right);
  }
  return text;
}

std::string families_text() {
  std::string text;
  for (const CauseFamily& family : cause_families())
    text += fmt::format("* {}, with {}: {}\n", fmt::join(family.of, ", "), fmt::join(family.with, ", "),
                        family.reason);
  return text;
}

nlohmann::json json_of(const FaultTally& t) {
  return {{"planted", t.planted},
          {"visible", t.visible},
          {"gate", t.caught},
          {"flash_attention", t.flash_attention},
          {"allclose", t.allclose},
          {"assert_close", t.assert_close},
          {"cosine", t.cosine},
          {"right", t.right},
          {"in_part", t.in_part},
          {"unexplained", t.unexplained},
          {"wrong", t.wrong},
          {"withheld", t.withheld},
          {"withheld_named", t.withheld_named},
          {"faint", t.faint},
          {"faint_right", t.faint_right},
          {"faint_wrong", t.faint_wrong}};
}

nlohmann::json json_of(const std::vector<FaultMiss>& misses) {
  nlohmann::json list = nlohmann::json::array();
  for (const FaultMiss& miss : misses)
    list.push_back({{"fault", miss.fault}, {"problem", miss.problem_line}, {"what", miss.what}});
  return list;
}

double percent(int part, int whole) {
  return whole == 0 ? 0 : 100.0 * part / whole;
}

}  // namespace

std::string summary_of(const FaultTable& table) {
  const FaultTally all = table.total(), none = table.healthy();
  int visible = 0, caught = 0;
  for (auto row = table.faults.begin() + 1; row != table.faults.end(); ++row) {
    visible += row->everywhere.visible + row->quiet.visible;
    caught += row->everywhere.caught + row->quiet.caught;
  }
  return fmt::format(
      "explain names {} of {} visible faults with the right scope: {:.1f} %, wanted {:.0f} % (in part {}, "
      "unexplained {}, "
      "wrongly {})\nhealthy paths with a finding: {} of {}, wanted none\nvisible faults that the gate "
      "`passes`: {} of {}, "
      "wanted none\n",
      all.right, all.visible, percent(all.right, all.visible), 100 * kLeastExplained, all.in_part,
      all.unexplained, all.wrong, none.planted - none.right, none.planted, visible - caught, visible);
}

std::string to_markdown(const FaultTable& table, const Gate& gate, const std::string& command) {
  const FaultTally all = table.total();
  std::string text = fmt::format("# Every fault, and who catches it\n\n    {}\n\n", command);
  text += fmt::format(
      "Gate `{}`; what is planted is planted in `sink_kernel`; {} seeds of each generated "
      "problem.\n\n```\n{}```\n\n",
      gate.name, table.seeds, summary_of(table));
  text +=
      "A fault is *visible* in a case where a head of a tensor has z_rms over 1.26 (in fp32 and of lse 1.2 "
      "times the gate's "
      "limit) or z_max over the gate's limit. All columns after it count visible cases. *gate*: the gate "
      "fails a head. "
      "*flash-attention*: its tests' criterion, whole tensors against the truth rounded to the format, "
      "largest error at most "
      "twice eager's plus twice what ref + 0.3 - 0.3 loses; it looks at no LSE. *allclose*: torch.allclose's "
      "defaults (rtol "
      "1e-5, atol 1e-8); *assert_close*: torch.testing.assert_close's (bf16 1.6e-2, fp16 1e-3, fp32 1.3e-6; "
      "atol 1e-5); "
      "*cosine*: of a whole tensor under 0.99. *named rightly*: explain names the fault's cause, or has it "
      "in `equivalent`, "
      "with all heads, tensors and rows that are visibly off and none that the fault did not touch, and "
      "nothing else. *in "
      "part*: named, but not so. *withheld*: explained once more with the cause and its family withheld from "
      "the "
      "catalogue, in the first seeds; *named all the same*: a mistake was named then. The first row is the "
      "healthy path, where each count is of false "
      "alarms.\n\n"
      "## In all heads\n";
  text += table_text(table, &FaultRow::everywhere);
  text += "\n## In one quiet head or group of 64 heads\n";
  text += table_text(table, &FaultRow::quiet);
  text += fmt::format(
      "\n`dq_scaled` has no cause in the catalogue: `unexplained` is right of it, and it does not count in "
      "the share. {} "
      "cases more are caught by the gate though not visible by the bounds above (z_row, bias, few rows): "
      "explain names {} "
      "of these rightly, {} wrongly.\n",
      all.faint, all.faint_right, all.faint_wrong);
  text += "\n## By problem\n" + problems_text(table);
  text += "\n## Families\nWhere a cause is withheld, these are too, as they may predict the same:\n\n" +
          families_text();
  text += "\n## What went otherwise\n" + misses_text(table.misses);
  text += "\n## What was named although withheld\n" + misses_text(table.withheld_named);
  return text;
}

nlohmann::json to_json(const FaultTable& table, const Gate& gate, const std::string& command) {
  nlohmann::json document = {{"format", "sinkscope-faults"},
                             {"version", 1},
                             {"command", command},
                             {"gate", gate.name},
                             {"seeds", table.seeds},
                             {"holds", table.holds()},
                             {"total", json_of(table.total())}};
  for (const FaultRow& row : table.faults)
    document["faults"].push_back(
        {{"fault", row.name}, {"everywhere", json_of(row.everywhere)}, {"quiet", json_of(row.quiet)}});
  for (const ProblemRow& row : table.problems) {
    document["problems"].push_back({{"problem", row.line},
                                    {"seeds", row.seeds},
                                    {"quiet", row.quiet},
                                    {"loudness_ratio", row.loudness_ratio},
                                    {"tally", json_of(row.tally)}});
  }
  document["misses"] = json_of(table.misses);
  document["withheld_named"] = json_of(table.withheld_named);
  return document;
}

}  // namespace sinkscope
