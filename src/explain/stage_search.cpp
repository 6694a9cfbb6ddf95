// SPDX-License-Identifier: Apache-2.0
#include "src/explain/stage_search.hpp"

#include <algorithm>
#include <cmath>

#include "src/core/parallel.hpp"

namespace sinkscope {
namespace {

using Vector = std::vector<double>;

// A stage must account for this share of the squared error to be seen at all, ...
constexpr double kLeastShare = 0.002;
// ... and for this one where it is none that a flash kernel has.
constexpr double kLeastUncommonShare = 0.05;

// Multiplications, at most, of what needs all keys of all rows.
constexpr double kMostWork = 0x1p33;

bool in_16_bits(const StageInputs& inputs) {
  const DType dtype = inputs.c.problem.shape.dtype;
  return dtype == DType::kBf16 || dtype == DType::kFp16;
}

// The mean over heads of what is left of the squared error under each of some roundings.
Vector left_under(const StageInputs& inputs, const SampledTensor& sample,
                  const std::vector<Roundings>& tried) {
  std::vector<Vector> left(sample.heads.size());
  parallel_for(static_cast<std::int64_t>(left.size()), inputs.threads, [&](std::int64_t i) {
    const SampledTensor::Head& head = sample.heads[static_cast<std::size_t>(i)];
    if (head.err2 == 0) return;
    for (const Vector& model : modelled(inputs, sample, head, tried))
      left[static_cast<std::size_t>(i)].push_back(squared_error(head, model) / head.err2);
  });
  Vector mean(tried.size());
  double count = 0;
  for (const Vector& of_head : left) {
    if (of_head.empty()) continue;
    ++count;
    for (std::size_t i = 0; i < mean.size(); ++i) mean[i] += of_head[i];
  }
  for (double& x : mean) x /= std::max(1.0, count);
  return mean;
}

template <typename Change>
void add_variants(std::vector<Roundings>& list, const Change& change) {
  const std::size_t count = list.size();
  for (std::size_t i = 0; i < count; ++i) {
    Roundings changed = list[i];
    if (change(changed) && std::find(list.begin(), list.end(), changed) == list.end())
      list.push_back(changed);
  }
}

// `few`: those of row maximum and LSE alone, where it matters little which tiles there are.
void add_pivots(const StageInputs& inputs, bool few, std::vector<Roundings>& list) {
  const std::vector<Roundings> plain = list;
  for (const bool exact_sum : {false, true}) {
    for (const Pivot pivot : {Pivot::kRow, Pivot::kUp128, Pivot::kUp64, Pivot::kBlock, Pivot::kDown128,
                              Pivot::kDown64, Pivot::kLse}) {
      if (pivot == Pivot::kBlock && inputs.c.problem.shape.window == 0) continue;
      if (few && pivot != Pivot::kRow && pivot != Pivot::kLse) continue;
      for (Roundings r : plain) {
        r.pivot = pivot;
        r.exact_sum = exact_sum;
        list.push_back(r);
      }
    }
  }
}

// The stages that flash kernels have, on and off.
std::vector<Roundings> common_variants(const StageInputs& inputs, const SampledTensor& sample, Roundings base,
                                       bool delta_is_known, bool few = false) {
  const bool of_keys = is_of_keys(sample.tensor), is_narrow = in_16_bits(inputs);
  base.own_lse = base.ds = base.p = base.heads = false;
  if (sample.tensor == TensorName::kOut) base.pivot = Pivot::kNone;
  if (!delta_is_known) base.delta = DeltaFrom::kExact;
  std::vector<Roundings> list = {base};
  if (sample.tensor == TensorName::kOut) {
    if (is_narrow || base.products != Narrow::kNone) add_pivots(inputs, few, list);
    return list;
  }
  if (sample.tensor != TensorName::kDv && !delta_is_known) {
    const std::vector<Roundings> exact = list;
    for (const DeltaFrom from : {DeltaFrom::kOut, DeltaFrom::kUnroundedOut}) {
      if (from == DeltaFrom::kOut && !(inputs.own_out && inputs.outputs.out.given())) continue;
      for (Roundings r : exact) {
        if (from == DeltaFrom::kUnroundedOut && r.pivot == Pivot::kNone) continue;
        r.delta = from;
        list.push_back(r);
      }
    }
  }
  if (is_narrow && (sample.tensor == TensorName::kDq || sample.tensor == TensorName::kDk))
    add_variants(list, [](Roundings& r) { return r.ds = true; });
  if (is_narrow && sample.tensor == TensorName::kDv)
    add_variants(list, [](Roundings& r) { return r.p = true; });
  if (is_narrow && of_keys && inputs.c.problem.shape.group() > 1)
    add_variants(list, [](Roundings& r) { return r.heads = true; });
  if (inputs.own_lse && inputs.outputs.lse.given())
    add_variants(list, [](Roundings& r) { return r.own_lse = true; });
  return list;
}

// One stage more, of those that flash kernels do not have.
std::vector<Roundings> uncommon_variants(const StageInputs& inputs, const SampledTensor& sample,
                                         const Roundings& base) {
  std::vector<Roundings> list;
  const auto add = [&](const auto& change) {
    Roundings r = base;
    change(r);
    if (!(r == base)) list.push_back(r);
  };
  const bool of_ds = sample.tensor == TensorName::kDq || sample.tensor == TensorName::kDk;
  if (!in_16_bits(inputs)) {
    if (base.products != Narrow::kNone) return {};
    for (const Narrow format : {Narrow::kTf32, Narrow::kTf32Cut, Narrow::kBf16, Narrow::kFp16})
      add([&](Roundings& r) { r.products = format; });
    return list;
  }
  add([](Roundings& r) { r.s = true; });
  add([](Roundings& r) { r.softmax = true; });
  const double scale = static_cast<float>(inputs.c.problem.shape.scale);
  int exponent = 0;
  if (std::frexp(scale, &exponent) != 0.5) add([](Roundings& r) { r.scaled_q = true; });
  if (of_ds) add([](Roundings& r) { r.dp = true; });
  if (of_ds) add([](Roundings& r) { r.narrow_delta = true; });
  for (const int terms : {1, 16, 32, 64, 128, 256}) add([&](Roundings& r) { r.accumulate = terms; });
  return list;
}

// Takes the variant that leaves least, and of those that leave about as much the first.
void improve(const StageInputs& inputs, const SampledTensor& sample, std::vector<Roundings> tried,
             double least, FoundRoundings& found) {
  std::erase_if(tried, [&](const Roundings& r) { return is_too_much(inputs, sample.tensor, r); });
  const Vector left = left_under(inputs, sample, tried);
  double best = found.left - least;
  for (std::size_t i = 0; i < tried.size(); ++i) {
    if (!(left[i] <= best)) continue;
    best = left[i] - kLeastShare;
    found.roundings = tried[i];
    found.left = left[i];
  }
}

}  // namespace

bool is_too_much(const StageInputs& inputs, TensorName tensor, const Roundings& r) {
  const AttentionShape& s = inputs.c.problem.shape;
  const bool is_whole =
      r.delta == DeltaFrom::kUnroundedOut || r.products != Narrow::kNone || r.scaled_q || r.s || r.softmax;
  if (tensor == TensorName::kOut || tensor == TensorName::kDq || !is_whole) return false;
  return static_cast<double>(s.b * s.hq) * static_cast<double>(s.sq) * static_cast<double>(s.sk) *
             static_cast<double>(s.d) >
         kMostWork;
}

FoundRoundings find_roundings(const StageInputs& inputs, const SampledTensor& sample,
                              const std::vector<Roundings>& bases, bool exhaustive) {
  FoundRoundings found;
  double count = 0;
  for (const SampledTensor::Head& head : sample.heads) {
    if (head.err2 == 0) continue;
    found.rounding += head.rounding2 / head.err2;
    ++count;
  }
  if (count == 0) return found;
  found.rounding /= count;
  const bool delta_is_known = is_of_keys(sample.tensor) && inputs.outputs.dq.given();
  for (const Roundings& base : bases)
    improve(inputs, sample, common_variants(inputs, sample, base, delta_is_known), kLeastShare, found);
  constexpr int kMostUncommon = 3;
  for (int i = 0; exhaustive && i < kMostUncommon && found.leaves_much(); ++i) {
    std::vector<Roundings> tried;
    for (const Roundings& more : uncommon_variants(inputs, sample, found.roundings)) {
      const std::vector<Roundings> variants = common_variants(inputs, sample, more, delta_is_known, true);
      tried.insert(tried.end(), variants.begin(), variants.end());
    }
    const double before = found.left;
    improve(inputs, sample, std::move(tried), kLeastUncommonShare, found);
    if (found.left == before) break;
    improve(inputs, sample, common_variants(inputs, sample, found.roundings, delta_is_known), kLeastShare,
            found);
  }
  return found;
}

}  // namespace sinkscope
