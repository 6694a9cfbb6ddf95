// SPDX-License-Identifier: Apache-2.0
#include "src/explain/consequences.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <span>

namespace sinkscope {
namespace {

double dot(std::span<const double> a, std::span<const double> b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// What the path gave of some cells has so much more squared norm than what is known of them.
double left_in(const State& state, const std::vector<std::size_t>& cells) {
  double left = 0;
  for (const std::size_t i : cells) {
    const CellState& cs = state.cells()[i];
    if (is_layer_gradient(cs.cell.tensor)) left += dot(cs.cell.got, cs.cell.got) - cs.base.norm2;
  }
  return left;
}

// A tensor that passes as it is, of heads that have a mistake in another, most likely follows from the same mistake: it
// does if that fits it better. What that changes goes to the mistakes of these heads, in equal parts.
class Following {
 public:
  Following(State& state, const std::vector<Accepted>& accepted)
      : state_(state), accepted_(accepted), changes_(accepted.size(), 0) {}

  // The change of the squared norm of dq, dk and dv, for each of the accepted.
  std::vector<double> run() {
    for (const TensorName tensor :
         {TensorName::kOut, TensorName::kDq, TensorName::kDk, TensorName::kDv, TensorName::kDsinks}) {
      std::map<Place, FunctionPtr> known;
      for (CellState& cs : state_.cells()) {
        const bool is_open = cs.concerned && !cs.fails && !cs.given_up && !cs.fact;
        if (cs.cell.tensor == tensor && is_open) known.merge(follow(cs));
      }
      for (const auto& [place, f] : known)
        state_.set_base(tensor, std::get<0>(place), std::get<1>(place), std::get<2>(place), f);
    }
    return changes_;
  }

 private:
  // What the heads of a cell are taken to compute from now on.
  std::map<Place, FunctionPtr> follow(CellState& cs) {
    std::map<Place, FunctionPtr> led;
    const Fit fit = state_.fit_under(
        cs, [&](std::int64_t batch, std::int64_t head, std::int64_t document) -> FunctionPtr {
          const std::int64_t kv_head = head / state_.problem().problem.shape.group();
          const bool is_its_own = (is_of_keys(cs.cell.tensor) ? kv_head : head) == cs.cell.head;
          const bool is_right = state_.base(cs.cell.tensor, batch, head, document)->key.empty();
          for (const TensorName leader : {TensorName::kOut, TensorName::kDq, TensorName::kLse}) {
            const FunctionPtr f = state_.base(leader, batch, head, document);
            if (is_its_own && is_right && !f->key.empty() && f->kv_head == kv_head)
              return led[{batch, head, document}] = f;
          }
          return nullptr;
        });
    if (led.empty() || !fit.fits || !(fit.z2 < cs.base.z2)) return {};
    if (is_layer_gradient(cs.cell.tensor)) credit(led, fit.norm2 - cs.base.norm2);
    cs.base = fit;
    return led;
  }

  void credit(const std::map<Place, FunctionPtr>& led, double change) {
    std::vector<std::size_t> causes;
    for (std::size_t i = 0; i < accepted_.size(); ++i) {
      const bool is_there = std::any_of(led.begin(), led.end(), [&](const auto& entry) {
        return accepted_[i].places.contains(entry.first);
      });
      if (accepted_[i].candidate && is_there) causes.push_back(i);
    }
    for (const std::size_t i : causes) changes_[i] += change / static_cast<double>(causes.size());
  }

  State& state_;
  const std::vector<Accepted>& accepted_;
  std::vector<double> changes_;
};

// Compares what cells are known to be with what they should be.
class Comparison {
 public:
  explicit Comparison(State& state) : state_(state) {
    const AttentionShape& s = state.problem().problem.shape;
    for (std::int64_t head = 0; head < s.hq; ++head)
      right_.push_back(std::make_shared<const HeadFunction>(right_function(state.problem(), head)));
    std::vector<HeadTask> tasks;
    for (std::size_t i = 0; i < state.cells().size(); ++i) {
      const CellState& cs = state.cells()[i];
      if (cs.cell.tensor == TensorName::kLse || !is_changed(cs)) continue;
      cells_.push_back(i);
      for (const auto& [batch, head] : state.heads_of(cs.cell)) tasks.push_back({batch, head, right(head)});
    }
    state.results().prepare(tasks, true);
  }

  void add_to(Consequences& consequences) {
    for (const std::size_t i : cells_) {
      const CellState& cs = state_.cells()[i];
      const FunctionOf function = [&](std::int64_t, std::int64_t head, std::int64_t) { return right(head); };
      const std::vector<double> ref = state_.predicted(cs, function).value;
      const std::vector<double> pred = cs.fact ? cs.fact->value : state_.predicted_base(cs).value;
      consequences.along[{cs.cell.tensor, cs.cell.head}] += dot(pred, ref) - dot(ref, ref);
      if (is_of_keys(cs.cell.tensor) && !cs.fact) add_parts(cs.cell, pred, ref, consequences);
    }
  }

 private:
  FunctionPtr right(std::int64_t head) const { return right_[static_cast<std::size_t>(head)]; }

  // May it be anything but the right function's?
  bool is_changed(const CellState& cs) const {
    const AttentionShape& s = state_.problem().problem.shape;
    const std::int64_t documents = std::max<std::int64_t>(1, static_cast<std::int64_t>(s.docs.size()));
    if (!cs.concerned || cs.fact) return cs.concerned;
    const bool is_own = !is_of_keys(cs.cell.tensor) && cs.cell.tensor != TensorName::kDsinks;
    for (std::int64_t batch = 0; batch < s.b; ++batch) {
      for (std::int64_t head = 0; head < s.hq; ++head) {
        for (std::int64_t document = 0; document < documents; ++document) {
          const bool is_elsewhere = cs.cell.tensor != TensorName::kDsinks &&
                                    (batch != cs.cell.batch || document != cs.cell.document);
          if (is_elsewhere || (is_own && head != cs.cell.head)) continue;
          if (!state_.base(cs.cell.tensor, batch, head, document)->key.empty()) return true;
        }
      }
    }
    return false;
  }

  // |pred|^2 - |ref|^2 = sum_h <pred_h - ref_h, pred + ref>: heads that are right themselves have no part in it.
  void add_parts(const Cell& cell, const std::vector<double>& pred, const std::vector<double>& ref,
                 Consequences& consequences) {
    const AttentionShape& s = state_.problem().problem.shape;
    std::vector<double> sum(pred.size());
    std::transform(pred.begin(), pred.end(), ref.begin(), sum.begin(), std::plus<>());
    for (std::int64_t head = 0; head < s.hq; ++head) {
      const FunctionPtr known = state_.base(cell.tensor, cell.batch, head, cell.document);
      if (known->key.empty()) continue;
      const double change = along_part(cell, head, *known, sum) - along_part(cell, head, *right(head), sum);
      if (change != 0) consequences.of_keys[{head, cell.head}] += change;
    }
  }

  // <what `head` adds to the sum that the cell is, along>.
  double along_part(const Cell& cell, std::int64_t head, const HeadFunction& function,
                    const std::vector<double>& along) {
    if (function.kv_head != cell.head) return 0;
    const HeadResult& r = state_.results().at(cell.batch, head, function, true);
    const std::vector<double>& part = cell.tensor == TensorName::kDk ? r.dk : r.dv;
    const auto first = static_cast<std::size_t>(cell.rows.first * cell.columns);
    return dot(std::span(part).subspan(first, along.size()), along);
  }

  State& state_;
  std::vector<FunctionPtr> right_;
  std::vector<std::size_t> cells_;
};

}  // namespace

Consequences consequences_of(State& state, const std::vector<Accepted>& accepted,
                             const std::vector<RoundingFit>& rounded,
                             const std::vector<std::size_t>& unclear) {
  Consequences consequences;
  if (!state.backward()) return consequences;
  const std::vector<double> following = Following(state, accepted).run();
  for (std::size_t i = 0; i < accepted.size(); ++i)
    consequences.causes.emplace_back(accepted[i].cause->id, accepted[i].norm2_change + following[i]);
  for (const RoundingFit& fit : rounded)
    consequences.causes.emplace_back(fit.model.cause, left_in(state, fit.cells));
  if (!unclear.empty()) consequences.causes.emplace_back(kUnknownCause, left_in(state, unclear));
  Comparison(state).add_to(consequences);
  return consequences;
}

}  // namespace sinkscope
