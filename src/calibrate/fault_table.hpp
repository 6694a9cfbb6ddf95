// SPDX-License-Identifier: Apache-2.0
// The catalogue of explain as the gate's own test: every fault on many cases, and what the gate, other projects' criteria
// and explain make of each.
#pragma once

#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"

#include "src/calibrate/fault_trial.hpp"
#include "src/compare/compare.hpp"

namespace sinkscope {

struct FaultTableOptions {
  std::vector<Problem> problems;
  std::vector<std::string> faults;  // by name; empty: all
  int seeds = 1;                    // of each problem that is generated
  int withheld_seeds = 1;           // of these, so many are also explained without the cause and its family
  int threads = 0;
};

// Trials counted. What follows `planted` counts of those that are visible.
struct FaultTally {
  int planted = 0, visible = 0;
  int caught = 0, flash_attention = 0, allclose = 0, assert_close = 0, cosine = 0;
  int right = 0, in_part = 0, unexplained = 0, wrong = 0;
  int withheld = 0,
      withheld_named = 0;  // explained without the cause and its family; a mistake was named all the same
  int faint = 0, faint_right = 0, faint_wrong = 0;  // caught, though not visible by visible_bounds()
};

// A visible fault that the gate missed or explain did not name rightly, or a healthy path that it named something for.
struct FaultMiss {
  std::string fault, problem_line, what;
};

struct FaultRow {
  std::string name;  // a fault's, or kHealthyRow
  FaultTally everywhere, quiet;
};
inline constexpr std::string_view kHealthyRow = "none (healthy)";

struct ProblemRow {
  std::string line;  // with the first seed
  int seeds = 0;
  bool quiet = false;  // planted in the quietest group alone
  double loudness_ratio =
      0;  // there: norm of dq, the loudest head over the loudest of the group; the least of all seeds
  FaultTally tally;  // over all faults
};

struct FaultTable {
  std::vector<FaultRow> faults;  // the healthy path first
  std::vector<ProblemRow> problems;
  std::vector<FaultMiss> misses, withheld_named;
  int seeds = 0, withheld_seeds = 0;
  bool has_eager = true;  // in every case

  FaultTally total() const;    // of the faults that explain's catalogue has a cause for
  FaultTally healthy() const;  // of the healthy path
  bool empty() const;          // nothing was visible
  bool holds() const;          // the three aims of kLeastExplained, kHealthyRow and the gate
};

// Of what is visible, explain must name so much rightly.
inline constexpr double kLeastExplained = 0.95;

// Plants every fault in sink_kernel in every problem, in all heads; where the problem has fill=loud in the group with
// the quietest gradient alone, at least 1000 times quieter than that of the loudest head. Seed k of a problem is its own
// plus 1000 k; a capture has one. Throws InputError for an unknown fault and for inputs that nothing can be judged by, and
// what a case or a healthy path throws.
FaultTable run_fault_table(const Gate& gate, const FaultTableOptions& options, const Progress& progress = {});

std::string to_markdown(const FaultTable& table, const Gate& gate, const std::string& command);
nlohmann::json to_json(const FaultTable& table, const Gate& gate, const std::string& command);

// Three lines: the aims, and how far each is met.
std::string summary_of(const FaultTable& table);

}  // namespace sinkscope
