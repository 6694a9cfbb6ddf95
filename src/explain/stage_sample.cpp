// SPDX-License-Identifier: Apache-2.0
#include "src/explain/stage_sample.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sinkscope {
namespace {

using Vector = std::vector<double>;

std::vector<std::int64_t> all_of(std::int64_t count) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

bool is_of_rows(TensorName tensor) {
  return tensor == TensorName::kOut || tensor == TensorName::kLse || tensor == TensorName::kDq;
}

// What of the roundings decides a row's LSE and Delta. dv needs no Delta.
Roundings before_scalars(const HeadData& head, Roundings r, TensorName tensor) {
  r.p = r.dp = r.ds = r.heads = false;
  r.accumulate = 0;
  if (tensor == TensorName::kDv) {
    r.delta = head.own_delta.empty() ? DeltaFrom::kExact : DeltaFrom::kOut;
    r.narrow_delta = false;
  }
  if (r.delta != DeltaFrom::kUnroundedOut && r.products == Narrow::kNone) {
    r.pivot = Pivot::kNone;
    r.exact_sum = false;
  }
  return r;
}

const Vector& tensor_of(const HeadResult& result, TensorName tensor) {
  switch (tensor) {
    case TensorName::kDq:
      return result.dq;
    case TensorName::kDk:
      return result.dk;
    case TensorName::kDv:
      return result.dv;
    default:
      return result.out;
  }
}

}  // namespace

std::shared_ptr<const RowScalars> ScalarMemo::get(std::int64_t batch, std::int64_t head, const HeadData& data,
                                                  const Roundings& r) {
  const auto known = [&]() -> std::shared_ptr<const RowScalars> {
    const std::lock_guard lock(mutex_);
    for (const Entry& entry : entries_) {
      if (entry.batch == batch && entry.head == head && entry.roundings == r) return entry.scalars;
    }
    return nullptr;
  };
  if (auto scalars = known()) return scalars;
  auto scalars = std::make_shared<const RowScalars>(row_scalars(data, r));
  const std::lock_guard lock(mutex_);
  entries_.push_back({batch, head, r, scalars});
  return scalars;
}

std::shared_ptr<const HeadResult> EmulationMemo::get(const Case& c, std::int64_t batch, std::int64_t head,
                                                     const RoundingModel& model) {
  const std::tuple key(model.cause, batch, head);
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = known_.find(key); known != known_.end()) return known->second;
  }
  auto result = std::make_shared<const HeadResult>(
      emulate(c, batch, head, right_function(c, head), model, {0, c.problem.shape.sq}, true));
  const std::lock_guard lock(mutex_);
  return known_[key] = result;
}

SampledTensor sampled(const StageInputs& inputs, TensorName tensor, const std::vector<HeadIndex>& heads,
                      std::int64_t most) {
  const AttentionShape& s = inputs.c.problem.shape;
  const Tensor& got = inputs.outputs[tensor];
  const std::vector<double>& ref = values_of(inputs.truth.value, tensor);
  const bool of_keys = is_of_keys(tensor), is_dsinks = tensor == TensorName::kDsinks;
  const std::int64_t columns = is_dsinks || tensor == TensorName::kLse ? 1 : s.d;
  const std::int64_t rows = is_dsinks ? 1 : of_keys ? s.sk : s.sq;
  SampledTensor sample{tensor, narrow_of(got.dtype()), columns, {}, {}};
  const std::int64_t count = std::min(rows, most);
  // From the middle of each of `count` equal ranges.
  for (std::int64_t i = 0; i < count; ++i) sample.at.push_back((2 * i + 1) * rows / (2 * count));
  for (const auto& [batch, head] : heads) {
    SampledTensor::Head one{batch, head, {}, {}};
    const std::int64_t number = is_dsinks ? head : batch * (of_keys ? s.hkv : s.hq) + head;
    for (const std::int64_t row : sample.at) {
      for (std::int64_t x = 0; x < sample.columns; ++x) {
        const std::int64_t i = (number * rows + row) * sample.columns + x;
        one.got.push_back(got.at(i));
        one.ref.push_back(ref[static_cast<std::size_t>(i)]);
        if (one.got.back() == one.ref.back() || !std::isfinite(one.got.back())) continue;
        const double spacing = spacing_at(one.got.back(), sample.stored);
        one.rounding2 += spacing * spacing / 12;
      }
    }
    one.err2 = squared_error(one, one.ref);
    sample.heads.push_back(std::move(one));
  }
  return sample;
}

double squared_error(const SampledTensor::Head& head, const Vector& model) {
  double sum = 0;
  for (std::size_t i = 0; i < model.size(); ++i) {
    const double error = head.got[i] - model[i];
    if (std::isfinite(error) && std::isfinite(head.ref[i])) sum += error * error;
  }
  return sum;
}

std::vector<Vector> modelled(const StageInputs& inputs, const SampledTensor& sample,
                             const SampledTensor::Head& head, std::span<const Roundings> roundings) {
  const AttentionShape& s = inputs.c.problem.shape;
  std::vector<Vector> values;
  if (is_of_rows(sample.tensor)) {
    const HeadData data = head_data(inputs.c, inputs.truth, inputs.outputs, head.batch, head.head);
    RoundedBlock block(data, sample.at, all_of(s.sk));
    for (const Roundings& r : roundings) {
      values.push_back(sample.tensor == TensorName::kOut   ? block.out(r)
                       : sample.tensor == TensorName::kLse ? block.lse(r)
                                                           : block.dq(r));
    }
    return values;
  }
  if (sample.tensor == TensorName::kDsinks) {
    values.assign(roundings.size(), {0});
    for (std::int64_t batch = 0; batch < s.b; ++batch) {
      const HeadData data = head_data(inputs.c, inputs.truth, inputs.outputs, batch, head.head);
      for (std::size_t i = 0; i < roundings.size(); ++i) {
        const Roundings r = before_scalars(data, roundings[i], sample.tensor);
        values[i][0] += rounded_dsink(data, *inputs.scalars->get(batch, head.head, data, r));
      }
    }
    return values;
  }
  const bool is_dk = sample.tensor == TensorName::kDk;
  const double scale = is_dk ? static_cast<float>(s.scale) : 1;
  values.assign(roundings.size(), Vector(head.got.size()));
  for (std::int64_t query = head.head * s.group(); query < (head.head + 1) * s.group(); ++query) {
    const HeadData data = head_data(inputs.c, inputs.truth, inputs.outputs, head.batch, query);
    RoundedBlock block(data, all_of(s.sq), sample.at);
    for (std::size_t i = 0; i < roundings.size(); ++i) {
      const Roundings& r = roundings[i];
      const auto scalars =
          inputs.scalars->get(head.batch, query, data, before_scalars(data, r, sample.tensor));
      if (!r.heads) {
        block.add_keys(is_dk, r, *scalars, values[i]);
        continue;
      }
      Vector part(head.got.size());
      block.add_keys(is_dk, r, *scalars, part);
      for (std::size_t x = 0; x < part.size(); ++x)
        values[i][x] += narrowed(scale * part[x], sample.stored) / scale;
    }
  }
  for (Vector& sums : values) {
    for (double& x : sums) x *= scale;
  }
  return values;
}

Vector emulated(const StageInputs& inputs, const SampledTensor& sample, const SampledTensor::Head& head,
                const RoundingModel& model) {
  const AttentionShape& s = inputs.c.problem.shape;
  Vector values(head.got.size());
  if (sample.tensor == TensorName::kDsinks) {
    for (std::int64_t batch = 0; batch < s.b; ++batch) {
      for (const double term : inputs.emulations->get(inputs.c, batch, head.head, model)->dsink)
        values[0] += term;
    }
    return values;
  }
  const std::int64_t group = is_of_keys(sample.tensor) ? s.group() : 1;
  const auto columns = static_cast<std::size_t>(sample.columns);
  for (std::int64_t query = head.head * group; query < (head.head + 1) * group; ++query) {
    const auto result = inputs.emulations->get(inputs.c, head.batch, query, model);
    const Vector& from = tensor_of(*result, sample.tensor);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] += from[static_cast<std::size_t>(sample.at[i / columns]) * columns + i % columns];
  }
  return values;
}

}  // namespace sinkscope
