// SPDX-License-Identifier: Apache-2.0
#include "src/explain/rounding_search.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "fmt/format.h"

#include "src/core/parallel.hpp"

namespace sinkscope {
namespace {

constexpr double kExponentials =
    0x1p-13;                   // of the row's sum: an fp32 exponential is off by 2^-22, a coarse one by this
constexpr double kSame = 1.1;  // models that leave within this factor of each other cannot be told apart

using Head = std::pair<std::int64_t, std::int64_t>;  // batch, query head

// Can models be run on what is known of its heads?
bool is_emulatable(const State& state, const Cell& cell) {
  const std::vector<Head> heads = state.heads_of(cell);
  return std::all_of(heads.begin(), heads.end(), [&](const Head& head) {
    return can_emulate(*state.base(cell.tensor, head.first, head.second, cell.document));
  });
}

void add_functions(const State& state, const Cell& cell, std::map<EmulatedKey, FunctionPtr>& functions) {
  for (const auto& [batch, head] : state.heads_of(cell)) {
    const FunctionPtr f = state.base(cell.tensor, batch, head, cell.document);
    functions[{batch, head, f->key}] = f;
  }
}

// Which model may be meant in which cell? Rows of out tell: in each head it must come nearer under the model, and over
// all heads about as near as under the best of them.
std::vector<std::vector<bool>> possible(State& state, const std::vector<RoundingModel>& models,
                                        const std::vector<std::size_t>& cells) {
  constexpr double kFar = 4;
  std::vector<std::vector<bool>> may;
  std::vector<double> left;
  for (const RoundingModel& model : models) {
    std::map<Place, std::optional<OutRows>> samples;
    std::vector<bool> of_cells;
    for (const std::size_t i : cells) {
      const Cell& cell = state.cells()[i].cell;
      bool is_possible = true;
      for (const auto& [batch, head] : state.heads_of(cell)) {
        const Place place{batch, head, cell.document};
        auto sample = samples.find(place);
        if (sample == samples.end()) sample = samples.emplace(place, sample_out(state, model, place)).first;
        is_possible = is_possible && (!sample->second || sample->second->is_nearer());
      }
      of_cells.push_back(is_possible);
    }
    double sum = 0;
    for (const auto& [place, sample] : samples) sum += sample ? sample->rounded : 0;
    left.push_back(sum);
    may.push_back(std::move(of_cells));
  }
  const double least = left.empty() ? 0 : *std::min_element(left.begin(), left.end());
  for (std::size_t m = 0; m < models.size(); ++m) {
    if (left[m] > kFar * least) may[m].assign(cells.size(), false);
  }
  return may;
}

// Models, the one that explains most cells first; of those that explain as many, the one that leaves less.
std::vector<std::size_t> by_what_they_explain(const std::vector<std::vector<std::optional<Fit>>>& left) {
  std::vector<std::pair<std::int64_t, double>> merit;
  std::vector<std::size_t> order;
  for (const auto& of_model : left) {
    std::int64_t cells = 0;
    double z2 = 0;
    for (const std::optional<Fit>& fit : of_model) {
      if (!fit) continue;
      ++cells;
      z2 += fit->z2;
    }
    merit.emplace_back(-cells, z2);
    order.push_back(order.size());
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return merit[a] < merit[b]; });
  return order;
}

// A head's dsinks before and after a model.
struct SinkFit {
  std::size_t wanted;
  Fit before, after;
};

// A single number says little: all heads' together say whether a model accounts for them.
bool are_left_by_rounding(const std::vector<SinkFit>& sinks) {
  constexpr double kMostLeft = 0.1;  // of the squared errors
  double before = 0, after = 0;
  for (const SinkFit& sink : sinks) before += sink.before.z2, after += sink.after.z2;
  return sinks.size() > 1 && std::isfinite(after) && after <= kMostLeft * before;
}

}  // namespace

bool is_left_by_rounding(const Fit& before, const Fit& after) {
  constexpr double kMostLeft = 0.5;      // of the squared error, where what is left is within the limits
  constexpr double kMostLeftOver = 0.1;  // ... and where it is not: rare flips of a rounding are large
  return std::isfinite(after.z2) && after.z2 <= (after.fits ? kMostLeft : kMostLeftOver) * before.z2;
}

std::optional<OutRows> sample_out(State& state, const RoundingModel& model, const Place& place) {
  constexpr std::int64_t kRows = 32;
  const auto [batch, head, document] = place;
  const auto out = std::find_if(state.cells().begin(), state.cells().end(),
                                [&, batch = batch, head = head, document = document](const CellState& cs) {
                                  return cs.cell.tensor == TensorName::kOut && cs.cell.batch == batch &&
                                         cs.cell.head == head && cs.cell.document == document;
                                });
  FunctionPtr known = state.base(TensorName::kOut, batch, head, document);
  if (out == state.cells().end() || !out->concerned || out->fact || !can_emulate(*known)) return {};
  const std::int64_t first = std::max<std::int64_t>(0, out->cell.rows.size() - kRows) / 2;
  const Range rows{first, std::min(first + kRows, out->cell.rows.size())};
  const Range of_head{out->cell.rows.first + rows.first, out->cell.rows.first + rows.end};
  Prediction prediction = state.predicted_base(*out);
  OutRows sample;
  sample.alone = fit(out->cell, prediction, out->limits, rows).z2;
  const HeadResult some = emulate(state.problem(), batch, head, *known, model, of_head, false);
  prediction.value =
      predict(
          state.problem(), out->cell, [known](std::int64_t, std::int64_t, std::int64_t) { return known; },
          [&](std::int64_t, std::int64_t, std::int64_t) -> const HeadResult& { return some; })
          .value;
  sample.rounded = fit(out->cell, prediction, out->limits, rows).z2;
  return sample;
}

bool may_round(State& state, const RoundingModel& model, const Place& place) {
  const std::optional<OutRows> sample = sample_out(state, model, place);
  return !sample || sample->is_nearer();
}

void EmulatedHeads::prepare(const std::map<EmulatedKey, FunctionPtr>& functions) {
  std::vector<std::pair<const EmulatedKey*, HeadResult>> missing;
  for (const auto& [key, function] : functions) {
    if (!results_.contains(key)) missing.emplace_back(&key, HeadResult{});
  }
  parallel_for(static_cast<std::int64_t>(missing.size()), threads_, [&](std::int64_t i) {
    auto& [key, result] = missing[static_cast<std::size_t>(i)];
    const auto& [batch, head, name] = *key;
    result = emulate(c_, batch, head, *functions.at(*key), model_, {0, c_.problem.shape.sq}, backward_);
  });
  for (auto& [key, result] : missing) results_[*key] = std::move(result);
}

const HeadResult& EmulatedHeads::at(std::int64_t batch, std::int64_t head, const FunctionPtr& function) {
  const EmulatedKey key{batch, head, function->key};
  if (!results_.contains(key)) prepare({{key, function}});
  return results_.at(key);
}

std::vector<RoundingFit> explain_by_rounding(State& state, const std::vector<std::size_t>& cells,
                                             int threads) {
  const Case& c = state.problem();
  std::vector<std::size_t> wanted;
  for (const std::size_t i : cells) {
    const Cell& cell = state.cells()[i].cell;
    if (cell.tensor != TensorName::kLse && is_emulatable(state, cell)) wanted.push_back(i);
  }
  if (wanted.empty()) return {};

  const std::vector<RoundingModel> models = rounding_models(c);
  const std::vector<std::vector<bool>> may = possible(state, models, wanted);
  std::vector<RoundingFit> fits;
  std::vector<std::vector<std::optional<Fit>>> left(models.size(),
                                                    std::vector<std::optional<Fit>>(wanted.size()));
  for (std::size_t m = 0; m < models.size(); ++m) {
    fits.push_back({models[m], {}, 0, 0});
    std::map<EmulatedKey, FunctionPtr> functions;
    bool backward = false;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const Cell& cell = state.cells()[wanted[i]].cell;
      if (!may[m][i]) continue;
      backward = backward || cell.tensor != TensorName::kOut;
      add_functions(state, cell, functions);
    }
    EmulatedHeads emulated(c, models[m], backward, threads);
    emulated.prepare(functions);
    std::vector<SinkFit> sinks;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (!may[m][i]) continue;
      const CellState& cs = state.cells()[wanted[i]];
      const FunctionOf base = [&](std::int64_t batch, std::int64_t head, std::int64_t document) {
        return state.base(cs.cell.tensor, batch, head, document);
      };
      const ResultOf result = [&](std::int64_t batch, std::int64_t head,
                                  std::int64_t document) -> const HeadResult& {
        return emulated.at(batch, head, base(batch, head, document));
      };
      Prediction prediction = state.predicted_base(cs);  // for its sigma
      prediction.value = predict(c, cs.cell, base, result).value;
      const Fit after = fit(cs.cell, prediction, cs.limits);
      if (is_left_by_rounding(cs.base, after)) left[m][i] = after;
      if (cs.cell.tensor == TensorName::kDsinks) sinks.push_back({i, cs.base, after});
    }
    if (!are_left_by_rounding(sinks)) continue;
    for (const SinkFit& sink : sinks) left[m][sink.wanted] = sink.after;
  }
  const auto is_of_sinks = [&](std::size_t i) {  // one number, which any model may come near by chance
    return state.cells()[wanted[i]].cell.tensor == TensorName::kDsinks;
  };
  const std::vector<std::size_t> order = by_what_they_explain(left);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    std::optional<std::size_t> best;
    for (const std::size_t m : order) {
      if (!left[m][i]) continue;
      if (!best || (!is_of_sinks(i) && left[m][i]->z2 * kSame < left[*best][i]->z2)) best = m;
    }
    if (!best) continue;
    RoundingFit& of = fits[*best];
    of.cells.push_back(wanted[i]);
    const CellState& cs = state.cells()[wanted[i]];  // beside a mistake it accounts for what that left
    const double removed = cs.base.z2 - left[*best][i]->z2;
    of.share += std::isfinite(cs.first.z2) ? removed / std::max(cs.first.z2, cs.base.z2) : 0;
    of.residual_z = std::max(of.residual_z, left[*best][i]->z_rms);
  }
  std::erase_if(fits, [](const RoundingFit& fit) { return fit.cells.empty(); });
  for (RoundingFit& fit : fits) fit.share /= static_cast<double>(fit.cells.size());
  std::stable_sort(fits.begin(), fits.end(), [](const RoundingFit& a, const RoundingFit& b) {
    return a.cells.size() > b.cells.size();
  });
  return fits;
}

double largest_error(State& state, const CellState& cs) {
  const Prediction base = state.predicted_base(cs);
  double largest = 0;
  for (std::size_t i = 0; i < base.value.size(); ++i) {
    if (cs.cell.got[i] == base.value[i]) continue;  // infinite alike
    const double error = std::abs(cs.cell.got[i] - base.value[i]);
    if (!(error <= largest)) largest = error;
  }
  return largest;
}

bool is_of_exponentials(State& state, const CellState& cell) {
  return cell.cell.tensor == TensorName::kLse && largest_error(state, cell) <= kExponentials;
}

std::vector<RoundingFit> explain_by_exponentials(State& state, const std::vector<std::size_t>& cells) {
  RoundingFit found;
  double largest = 0;
  for (const std::size_t i : cells) {
    const CellState& cs = state.cells()[i];
    if (!is_of_exponentials(state, cs)) continue;
    found.cells.push_back(i);
    largest = std::max(largest, largest_error(state, cs));
    found.share +=
        1 - 1 / std::max(1.0, cs.base.z_rms * cs.base.z_rms);  // what fp32 has anyway is not theirs
    found.residual_z = std::max(found.residual_z, std::min(1.0, cs.base.z_rms));
  }
  if (found.cells.empty()) return {};
  found.share /= static_cast<double>(found.cells.size());
  found.model = {"rounding:exp",
                 fmt::format("the same function, with row sums of exponentials that are good to {:.0f} bits",
                             std::floor(-std::log2(largest))),
                 "no mistake: exponentials with all bits of fp32 give a closer LSE", false};
  return {found};
}

}  // namespace sinkscope
