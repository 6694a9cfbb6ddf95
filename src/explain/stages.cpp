// SPDX-License-Identifier: Apache-2.0
#include "src/explain/stages.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <stdexcept>

#include "fmt/format.h"

#include "src/core/parallel.hpp"
#include "src/explain/stage_measure.hpp"

namespace sinkscope {
namespace {

constexpr std::int64_t kMostRows = 256;     // of a head that are measured,
constexpr std::int64_t kMostSearched = 32;  // and from which it is decided what a path does

class Stages {
 public:
  explicit Stages(const StagesOf& path)
      : path_(path), inputs_{path.c,       path.truth,   path.outputs, path.own_out,
                             path.own_lse, path.threads, &scalars_,    &emulations_} {}

  std::vector<HeadStages> run() {
    if (path_.model) return measure_all(*path_.model);
    search(false);
    const bool leaves_much = std::any_of(found_.begin(), found_.end(),
                                         [](const auto& found) { return found.second.leaves_much(); });
    if (leaves_much) {
      if (const std::optional<RoundingModel> model = find_model()) return measure_all(*model);
      search(true);
    }
    return measure_all(std::nullopt);
  }

 private:
  std::vector<HeadIndex> heads_of(TensorName tensor) const {
    std::vector<HeadIndex> heads;
    for (const auto& [of, head] : path_.heads) {
      if (of == tensor) heads.push_back(head);
    }
    return heads;
  }

  // Enough of them for what takes long to try.
  std::vector<HeadIndex> some_of(const std::vector<HeadIndex>& heads) const {
    constexpr std::size_t kQueryHeads = 4;
    std::vector<HeadIndex> some;
    const std::size_t count = std::min(heads.size(), kQueryHeads);
    for (std::size_t i = 0; i < count; ++i) some.push_back(heads[(2 * i + 1) * heads.size() / (2 * count)]);
    return some;
  }

  // So many that all heads together stay cheap.
  SampledTensor sample_of(TensorName tensor, const std::vector<HeadIndex>& heads, std::int64_t least,
                          std::int64_t most) const {
    constexpr std::int64_t kPairs = 1 << 24;
    const AttentionShape& s = path_.c.problem.shape;
    const std::int64_t others = is_of_keys(tensor) ? s.sq : s.sk;
    const std::int64_t affordable = kPairs / std::max<std::int64_t>(1, s.b * s.hq * others);
    return sampled(inputs_, tensor, heads, std::clamp(affordable, least, most));
  }

  void search(bool exhaustive) {
    found_.clear();
    for (const TensorName tensor : kTensorNames) {
      const std::vector<HeadIndex> heads = heads_of(tensor);
      if (!heads.empty() && tensor != TensorName::kLse) found_[tensor] = search(tensor, heads, exhaustive);
    }
    tell_softmax_from_p();
    // In fp32 the LSE's own error is that of sums, which no stage foresees; only what changes the logits is seen in it.
    Roundings of_lse;
    of_lse.products = found_of(TensorName::kOut).products;
    of_lse.scaled_q = found_of(TensorName::kOut).scaled_q;
    of_lse.s = found_of(TensorName::kOut).s;
    if (!(of_lse == Roundings{})) found_[TensorName::kLse] = {of_lse, 0, 0};
  }

  // In out and in dv a rounded softmax is the same as a normalised P that is rounded when it is multiplied; dS tells.
  void tell_softmax_from_p() {
    if (!found_of(TensorName::kDq).softmax && !found_of(TensorName::kDk).softmax) return;
    for (auto& [tensor, found] : found_) {
      Roundings& r = found.roundings;
      const bool is_same = tensor == TensorName::kOut ? r.pivot == Pivot::kLse && r.exact_sum
                                                      : tensor == TensorName::kDv && r.p;
      if (!is_same) continue;
      r.softmax = true;
      r.p = r.exact_sum = false;
      if (tensor == TensorName::kOut) r.pivot = Pivot::kNone;
    }
  }

  Roundings found_of(TensorName tensor) const {
    const auto found = found_.find(tensor);
    return found == found_.end() ? Roundings{} : found->second.roundings;
  }

  // The backward finds out's P and sum as the forward left them, and one Delta serves dq, dk and dsinks; what else it
  // rounds may be what the forward or dq round, or not.
  FoundRoundings search(TensorName tensor, const std::vector<HeadIndex>& heads, bool exhaustive) const {
    const auto with_known = [&](Roundings r) {
      r.pivot = found_of(TensorName::kOut).pivot;
      r.exact_sum = found_of(TensorName::kOut).exact_sum;
      r.delta = found_of(TensorName::kDq).delta;
      if (is_too_much(inputs_, tensor, r)) r.delta = DeltaFrom::kExact;
      return r;
    };
    if (tensor == TensorName::kDsinks && found_.contains(TensorName::kDq))
      return {with_known(found_of(TensorName::kDq)), 0, 0};
    std::vector<Roundings> bases = {with_known({})};
    for (const TensorName before : {TensorName::kOut, TensorName::kDq}) {
      const Roundings base = with_known(found_of(before));
      if (std::find(bases.begin(), bases.end(), base) == bases.end()) bases.push_back(base);
    }
    if (!exhaustive) return find_roundings(inputs_, sample_of(tensor, heads, 8, kMostSearched), bases, false);
    return find_roundings(inputs_, sample_of(tensor, some_of(heads), 8, kMostSearched), bases, true);
  }

  // A whole algorithm that rounds what it writes out, as transformers' eager does, where it leaves far less.
  std::optional<RoundingModel> find_model() const {
    double least = 0.5;
    std::optional<RoundingModel> best;
    for (const RoundingModel& model : rounding_models(path_.c)) {
      double left = 0, left_by_stages = 0;
      for (const auto& [tensor, found] : found_) {
        if (!found.leaves_much()) continue;
        const SampledTensor sample = sample_of(tensor, some_of(heads_of(tensor)), 8, kMostSearched);
        for (const SampledTensor::Head& head : sample.heads) {
          if (head.err2 == 0) continue;
          left += squared_error(head, emulated(inputs_, sample, head, model)) / head.err2;
          left_by_stages += found.left;
        }
      }
      if (!(left < least * left_by_stages)) continue;
      least = left / left_by_stages;
      best = model;
    }
    return best;
  }

  std::vector<HeadStages> measure_all(const std::optional<RoundingModel>& model) const {
    std::vector<HeadStages> stages;
    for (const TensorMetrics& metrics : path_.metrics) {
      const std::vector<HeadIndex> heads = heads_of(metrics.tensor);
      if (heads.empty() || (!model && !found_.contains(metrics.tensor))) continue;
      if (model && metrics.tensor == TensorName::kLse) continue;
      const SampledTensor sample = sample_of(metrics.tensor, heads, 16, kMostRows);
      std::vector<HeadStages> of_heads(heads.size());
      parallel_for(std::ssize(heads), path_.threads, [&](std::int64_t i) {
        const SampledTensor::Head& head = sample.heads[static_cast<std::size_t>(i)];
        const HeadMetrics& of = metrics.heads[static_cast<std::size_t>(head.batch * metrics.h + head.head)];
        const bool is_biased = bias_is_significant(path_.gate, metrics, of);
        HeadStages& result = of_heads[static_cast<std::size_t>(i)];
        result = model ? measure_model(inputs_, sample, head, *model, is_biased)
                       : measure_stages(inputs_, sample, head, found_of(metrics.tensor), is_biased);
        result.z_rms = of.z_rms;
        result.biased = is_biased;
      });
      stages.insert(stages.end(), of_heads.begin(), of_heads.end());
    }
    return stages;
  }

  const StagesOf& path_;
  ScalarMemo scalars_;
  EmulationMemo emulations_;
  StageInputs inputs_;
  std::map<TensorName, FoundRoundings> found_;
};

double share_of(const HeadStages& head, std::string_view stage) {
  double share = 0;
  for (const StageShare& one : head.stages) share += one.stage == stage ? one.share : 0;
  return share;
}

}  // namespace

std::vector<HeadStages> rounding_stages(const StagesOf& path) {
  return Stages(path).run();
}

std::vector<TensorStages> stages_by_tensor(const std::vector<HeadStages>& stages) {
  std::vector<TensorStages> tensors;
  std::vector<double> weights;
  for (const HeadStages& head : stages) {
    if (tensors.empty() || tensors.back().tensor != head.tensor) {
      tensors.push_back({head.tensor, {}, 0, 0});
      weights.push_back(0);
    }
    TensorStages& of = tensors.back();
    const double weight = head.tensor == TensorName::kDsinks ? head.z_rms * head.z_rms : 1;
    of.z_rms = std::max(of.z_rms, head.z_rms);
    if (head.stages.empty() && head.remainder == 0) continue;  // it has no error
    weights.back() += weight;
    of.remainder += weight * head.remainder;
    for (const StageShare& one : head.stages) {
      auto at = std::find_if(of.stages.begin(), of.stages.end(),
                             [&](const StageShare& known) { return known.stage == one.stage; });
      if (at == of.stages.end()) at = of.stages.insert(at, {one.stage, 0, 0, false});
      at->share += weight * one.share;
      at->expected = at->expected || one.expected;
    }
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const double weight = weights[i] > 0 ? weights[i] : 1;
    tensors[i].remainder /= weight;
    for (StageShare& one : tensors[i].stages) one.share /= weight;
  }
  return tensors;
}

std::vector<Finding> findings_of_stages(const AttentionShape& s, const std::vector<HeadStages>& stages) {
  constexpr double kLeast = 0.1;
  std::map<std::string, Finding> findings;
  for (const TensorStages& of : stages_by_tensor(stages)) {
    for (const StageShare& one : of.stages) {
      if (!(one.share >= kLeast)) continue;
      Finding& finding = findings[one.stage];
      finding.share = (finding.share * static_cast<double>(finding.tensors.size()) + one.share) /
                      static_cast<double>(finding.tensors.size() + 1);
      finding.tensors.push_back(of.tensor);
    }
  }
  std::vector<Finding> list;
  for (auto& [stage, finding] : findings) {
    finding.cause = "rounding:" + stage;
    finding.sentence = stage_info(stage).sentence;
    finding.fix = stage_info(stage).fix;
    finding.of_keys = std::all_of(finding.tensors.begin(), finding.tensors.end(), is_of_keys);
    std::set<std::int64_t> batches, heads;
    for (const HeadStages& head : stages) {
      const bool has =
          std::find(finding.tensors.begin(), finding.tensors.end(), head.tensor) != finding.tensors.end();
      if (!has || !(share_of(head, stage) >= kLeast)) continue;
      finding.residual_z = std::max(finding.residual_z, head.z_rms * std::sqrt(head.left));
      const std::int64_t count = is_of_keys(head.tensor) && !finding.of_keys ? s.group() : 1;
      for (std::int64_t i = 0; i < count; ++i) heads.insert(head.head * count + i);
      if (head.tensor != TensorName::kDsinks) batches.insert(head.batch);
      if (head.tensor == TensorName::kDsinks) {
        for (std::int64_t batch = 0; batch < s.b; ++batch) batches.insert(batch);
      }
    }
    finding.batches.assign(batches.begin(), batches.end());
    finding.heads.assign(heads.begin(), heads.end());
    finding.all_heads = std::ssize(finding.heads) == (finding.of_keys ? s.hkv : s.hq);
    for (std::int64_t i = 0; i < std::max<std::int64_t>(1, std::ssize(s.docs)); ++i)
      finding.documents.push_back(i);
    list.push_back(std::move(finding));
  }
  std::stable_sort(list.begin(), list.end(), [](const Finding& a, const Finding& b) {
    return a.share * static_cast<double>(a.tensors.size()) > b.share * static_cast<double>(b.tensors.size());
  });
  return list;
}

}  // namespace sinkscope
