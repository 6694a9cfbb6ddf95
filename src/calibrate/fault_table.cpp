// SPDX-License-Identifier: Apache-2.0
#include "src/calibrate/fault_table.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <mutex>
#include <thread>

#include "fmt/format.h"

#include "src/calibrate/fault_expectation.hpp"
#include "src/capture/capture.hpp"
#include "src/core/error.hpp"
#include "src/core/parallel.hpp"

namespace sinkscope {
namespace {

constexpr std::uint64_t kSeedStep = 1000;
constexpr double kQuiet = 1000;  // so many times quieter than the loudest head is a quiet group at least

void add(FaultTally& tally, const FaultTrial& trial) {
  if (!trial.planted) return;
  ++tally.planted;
  if (!trial.visible) {
    tally.faint += trial.caught ? 1 : 0;
    tally.faint_right += trial.caught && trial.naming == Naming::kRight ? 1 : 0;
    tally.faint_wrong += trial.caught && trial.naming == Naming::kWrong ? 1 : 0;
    return;
  }
  ++tally.visible;
  tally.caught += trial.caught ? 1 : 0;
  tally.flash_attention += trial.peers.flash_attention ? 1 : 0;
  tally.allclose += trial.peers.allclose ? 1 : 0;
  tally.assert_close += trial.peers.assert_close ? 1 : 0;
  tally.cosine += trial.peers.cosine ? 1 : 0;
  tally.right += trial.naming == Naming::kRight ? 1 : 0;
  tally.in_part += trial.naming == Naming::kInPart ? 1 : 0;
  tally.unexplained += trial.naming == Naming::kUnexplained ? 1 : 0;
  tally.wrong += trial.naming == Naming::kWrong ? 1 : 0;
  tally.withheld += trial.withheld ? 1 : 0;
  tally.withheld_named += trial.withheld_named ? 1 : 0;
}

// Of a healthy path every alarm is a false one, whether a head is visibly off or not.
void add_healthy(FaultTally& tally, FaultTrial trial) {
  trial.visible = true;
  add(tally, trial);
}

void add(FaultTally& sum, const FaultTally& tally) {
  for (int FaultTally::*count :
       {&FaultTally::planted, &FaultTally::visible, &FaultTally::caught, &FaultTally::flash_attention,
        &FaultTally::allclose, &FaultTally::assert_close, &FaultTally::cosine, &FaultTally::right,
        &FaultTally::in_part, &FaultTally::unexplained, &FaultTally::wrong, &FaultTally::withheld,
        &FaultTally::withheld_named, &FaultTally::faint, &FaultTally::faint_right, &FaultTally::faint_wrong})
    sum.*count += tally.*count;
}

// Norms of dout of each key/value head's query heads, over the batch.
std::vector<double> loudness_of_groups(const Case& c) {
  const AttentionShape& s = c.problem.shape;
  std::vector<double> squares(static_cast<std::size_t>(s.hkv));
  for (std::int64_t i = 0; i < c.dout.size(); ++i) {
    const std::int64_t head = i / (s.sq * s.d) % s.hq;
    squares[static_cast<std::size_t>(head / s.group())] += c.dout.at(i) * c.dout.at(i);
  }
  return squares;
}

std::int64_t quietest_group(const Case& c) {
  const std::vector<double> loudness = loudness_of_groups(c);
  return std::min_element(loudness.begin(), loudness.end()) - loudness.begin();
}

// The loudest head's norm of dq over that of the loudest head of a group, in the truth.
double loudness_ratio(const Case& c, const Truth& truth, std::int64_t kv_head) {
  const AttentionShape& s = c.problem.shape;
  double loudest = 0, in_group = 0;
  const std::int64_t per_head = s.sq * s.d;
  for (std::int64_t head = 0; head < s.b * s.hq; ++head) {
    double square = 0;
    for (std::int64_t i = head * per_head; i < (head + 1) * per_head; ++i)
      square += std::pow(truth.value.dq[static_cast<std::size_t>(i)], 2);
    loudest = std::max(loudest, square);
    if (head % s.hq / s.group() == kv_head) in_group = std::max(in_group, square);
  }
  return std::sqrt(loudest / in_group);
}

// Divides dout and dlse of a group by a power of two, which changes no digit of its gradient.
void quieten(Case& c, std::int64_t kv_head, double power_of_two) {
  const AttentionShape& s = c.problem.shape;
  for (Tensor* tensor : {&c.dout, &c.dlse}) {
    if (!tensor->given()) continue;
    const std::int64_t per_head = tensor->size() / (s.b * s.hq);
    for (std::int64_t i = 0; i < tensor->size(); ++i) {
      if (i / per_head % s.hq / s.group() == kv_head) tensor->set(i, tensor->at(i) / power_of_two);
    }
  }
}

// A problem's line, or the name of its capture, wherever that lies.
std::string name_of_problem(const Problem& problem) {
  if (problem.capture.empty()) return to_string(problem);
  return fmt::format("capture {}", std::filesystem::path(problem.capture).stem().string());
}

class TableRun {
 public:
  TableRun(const Gate& gate, const FaultTableOptions& options, const Progress& progress)
      : gate_(gate), options_(options), progress_(progress) {
    table_.seeds = options.seeds;
    table_.withheld_seeds = options.withheld_seeds;
    table_.faults.push_back({std::string(kHealthyRow), {}, {}});
    for (const Fault& fault : all_faults()) {
      const bool wanted = options.faults.empty() || std::find(options.faults.begin(), options.faults.end(),
                                                              fault.name) != options.faults.end();
      if (!wanted) continue;
      faults_.push_back(&fault);
      table_.faults.push_back({fault.name, {}, {}});
    }
    for (const std::string& name : options.faults) find_fault(name);
    for (std::size_t i = 0; i < options.problems.size(); ++i) {
      const Problem& problem = options.problems[i];
      const int seeds = problem.capture.empty() ? options.seeds : 1;
      table_.problems.push_back({name_of_problem(problem), seeds, problem.fill == Fill::kLoud, 0, {}});
      for (int seed = 0; seed < seeds; ++seed) {
        cases_.push_back({i, problem, seed < options.withheld_seeds, 0, false, {}});
        cases_.back().problem.seed += kSeedStep * static_cast<std::uint64_t>(seed);
      }
    }
  }

  FaultTable run() {
    // Each case on one thread, where there are enough of them.
    const auto cores = static_cast<std::size_t>(std::max(1U, std::thread::hardware_concurrency()));
    const std::size_t threads = options_.threads > 0 ? static_cast<std::size_t>(options_.threads) : cores;
    const bool apart = cases_.size() >= threads;
    parallel_for(std::ssize(cases_), apart ? options_.threads : 1, [&](std::int64_t i) {
      run_case(cases_[static_cast<std::size_t>(i)], apart ? 1 : options_.threads);
    });
    for (const CaseTrials& of : cases_) {
      ProblemRow& row = table_.problems[of.row];
      table_.has_eager = table_.has_eager && of.has_eager;
      if (row.quiet && (row.loudness_ratio == 0 || of.loudness_ratio < row.loudness_ratio))
        row.loudness_ratio = of.loudness_ratio;
      for (std::size_t i = 0; i < of.trials.size(); ++i)
        note(of.trials[i], i, name_of_problem(of.problem), row);
    }
    return std::move(table_);
  }

 private:
  struct CaseTrials {
    std::size_t row;  // of the table's problems
    Problem problem;
    bool withhold;
    double loudness_ratio;
    bool has_eager;
    std::vector<FaultTrial> trials;  // of the healthy path, then of each fault
  };

  void run_case(CaseTrials& of, int threads) {
    const std::string line = name_of_problem(of.problem);
    report(line, "truth", 0);
    Case c = make_case(of.problem, "", threads);
    std::optional<std::int64_t> kv_head;
    const bool quiet = table_.problems[of.row].quiet;
    if (quiet) kv_head = quietest_group(c);
    FaultCase fault_case = prepare_fault_case(std::move(c), kv_head, threads);
    if (quiet) {
      const double ratio = loudness_ratio(fault_case.c, fault_case.truth, *kv_head);
      const double factor = std::exp2(std::max(0.0, std::ceil(std::log2(kQuiet / ratio))));
      of.loudness_ratio = ratio * factor;
      quieten(fault_case.c, *kv_head, factor);
      if (factor > 1) fault_case = prepare_fault_case(std::move(fault_case.c), kv_head, threads);
    }
    of.has_eager = fault_case.eager.out.given();
    of.trials.resize(faults_.size() + 1);
    parallel_for(std::ssize(of.trials), threads, [&](std::int64_t i) {
      const auto at = static_cast<std::size_t>(i);
      of.trials[at] = at == 0 ? try_healthy(fault_case, gate_)
                              : try_fault(fault_case, gate_, *faults_[at - 1], of.withhold);
      report(line, table_.faults[at].name, 1);
    });
  }

  void note(const FaultTrial& trial, std::size_t index, const std::string& line, ProblemRow& row) {
    FaultRow& fault = table_.faults[index];
    FaultTally& tally = row.quiet ? fault.quiet : fault.everywhere;
    if (index == 0) {
      add_healthy(tally, trial);
      if (trial.caught || trial.naming != Naming::kRight)
        table_.misses.push_back({fault.name, line, trial.said});
      return;
    }
    add(tally, trial);
    add(row.tally, trial);
    if (!trial.planted) return;
    if (trial.visible && !trial.caught) {
      table_.misses.push_back({fault.name, line, "the gate passes it"});
    } else if (trial.visible && trial.naming != Naming::kRight) {
      const char* how = trial.naming == Naming::kWrong    ? "named wrongly: "
                        : trial.naming == Naming::kInPart ? "scope, or something left: "
                                                          : "";
      table_.misses.push_back({fault.name, line, how + trial.said});
    }
    if (trial.withheld_named) table_.withheld_named.push_back({fault.name, line, trial.said_withheld});
  }

  void report(const std::string& line, const std::string& stage, int trials) {
    const std::lock_guard lock(mutex_);
    trials_done_ += trials;
    const double all = static_cast<double>(cases_.size() * (faults_.size() + 1));
    if (progress_) progress_(line, stage, trials_done_ / all);
  }

  const Gate& gate_;
  const FaultTableOptions& options_;
  const Progress& progress_;
  std::vector<const Fault*> faults_;
  FaultTable table_;
  std::vector<CaseTrials> cases_;
  std::mutex mutex_;
  double trials_done_ = 0;
};

}  // namespace

FaultTally FaultTable::total() const {
  FaultTally sum;
  for (const FaultRow& row : faults) {
    if (row.name == kHealthyRow || expectation_of(row.name).cause == kUnknownCause) continue;
    add(sum, row.everywhere);
    add(sum, row.quiet);
  }
  return sum;
}

bool FaultTable::empty() const {
  return std::all_of(faults.begin() + 1, faults.end(),
                     [](const FaultRow& row) { return row.everywhere.visible + row.quiet.visible == 0; });
}

FaultTally FaultTable::healthy() const {
  FaultTally sum;
  add(sum, faults.front().everywhere);
  add(sum, faults.front().quiet);
  return sum;
}

bool FaultTable::holds() const {
  const FaultTally all = total(), none = healthy();
  const bool gate_misses_one = std::any_of(faults.begin() + 1, faults.end(), [](const FaultRow& row) {
    return row.everywhere.caught < row.everywhere.visible || row.quiet.caught < row.quiet.visible;
  });
  return all.right >= kLeastExplained * all.visible && none.right == none.planted && !gate_misses_one;
}

FaultTable run_fault_table(const Gate& gate, const FaultTableOptions& options, const Progress& progress) {
  return TableRun(gate, options, progress).run();
}

}  // namespace sinkscope
