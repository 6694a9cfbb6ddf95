// SPDX-License-Identifier: Apache-2.0
#include "src/explain/stage_measure.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sinkscope {
namespace {

using Vector = std::vector<double>;

// One stage switched on after others.
struct Step {
  std::string stage;
  Roundings roundings;
};

// From no rounding to all that were found, in the order of the algorithm. What does not reach the tensor is left out.
std::vector<Step> steps_of(const Roundings& found, TensorName tensor) {
  std::vector<Step> steps;
  Roundings r;
  const auto take = [&](const char* stage, const auto& change) {
    const Roundings before = r;
    change();
    if (!(r == before)) steps.push_back({stage, r});
  };
  const bool of_out = tensor == TensorName::kOut || tensor == TensorName::kLse;
  take(found.products == Narrow::kBf16   ? "bf16"
       : found.products == Narrow::kFp16 ? "fp16"
                                         : "tf32",
       [&] {
         r.products = found.products;
         if (r.products == Narrow::kNone) return;
         r.pivot = found.pivot;
         r.exact_sum = found.exact_sum;
       });
  take("inputs", [&] { r.scaled_q = found.scaled_q; });
  take("s", [&] { r.s = found.s; });
  take("softmax", [&] { r.softmax = found.softmax; });
  take("lse", [&] { r.own_lse = !of_out && found.own_lse; });
  take("p", [&] {
    r.p = tensor == TensorName::kDv && found.p;
    if (!of_out && found.delta != DeltaFrom::kUnroundedOut) return;
    if (!of_out) r.delta = found.delta;
    r.pivot = found.pivot;
    r.exact_sum = found.exact_sum;
  });
  if (!of_out && tensor != TensorName::kDv) {
    take("delta", [&] { r.delta = found.delta; });
    take("delta_rounded", [&] { r.narrow_delta = found.narrow_delta; });
    take("dp", [&] { r.dp = found.dp; });
  }
  if (tensor == TensorName::kDq || tensor == TensorName::kDk) take("ds", [&] { r.ds = found.ds; });
  take("accumulate", [&] { r.accumulate = found.accumulate; });
  take("group", [&] { r.heads = is_of_keys(tensor) && found.heads; });
  return steps;
}

double product(const Vector& a, const Vector& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// a - b, and 0 where that is no number.
Vector difference(const Vector& a, const Vector& b) {
  Vector result(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = a[i] - b[i];
    result[i] = std::isfinite(x) ? x : 0;
  }
  return result;
}

// The part of a product that the rows make which are marked, or are not.
double product_in(const Vector& a, const Vector& b, std::size_t columns, const std::vector<bool>& rows,
                  bool marked) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += rows[i / columns] == marked ? a[i] * b[i] : 0;
  return sum;
}

// Builds a head's answer up, one change of the model after another.
class Measurement {
 public:
  Measurement(const StageInputs& inputs, const SampledTensor& sample, const SampledTensor::Head& head)
      : inputs_(inputs),
        sample_(sample),
        head_(head),
        error_(difference(head.got, head.ref)),
        ref2_(product(head.ref, head.ref)),
        model_(head.ref) {
    result_.tensor = sample.tensor;
    result_.batch = head.batch;
    result_.head = head.head;
    result_.bias = along_truth(error_);
    if (head.err2 == 0) result_.remainder = result_.left = 0;
  }

  void add(const std::string& stage, const Vector& after) {
    const Vector change = difference(after, model_);
    result_.stages.push_back({stage, product(error_, change) / head_.err2, along_truth(change)});
    model_ = after;
  }

  // The last rounding. Which way it went is known where the model foresees nearly all of it.
  void add_output() {
    constexpr double kNearlyAll = 0.1;
    Vector rounded = model_;
    for (double& x : rounded) x = narrowed(x, sample_.stored);
    if (squared_error(head_, rounded) <= kNearlyAll * head_.rounding2) {
      add("output", rounded);
    } else if (head_.got.size() > 1) {
      const double made = std::min(head_.rounding2, squared_error(head_, model_));
      result_.stages.push_back({"output", made / head_.err2, 0, true});
    }
  }

  // P in the numerator is not the P of the sum: what that changes of out, against `agreeing`, where they agree.
  void add_row_sum(const Vector& disagreeing, const Vector& agreeing) {
    add_source("row_sum", along_truth(difference(disagreeing, agreeing)));
  }

  // Ties at the row's maximum, in either of two ways. Where P counts rounded on one side of the division alone, what is
  // rounded up to 1 beside the maximum is too large. And where tied rows are biased as the model says while others, a
  // tenth of the head at least, are not, it is they.
  void add_ties(bool sums_differ) {
    RoundedBlock block = whole_rows();
    if (sums_differ && add_source("ties", along_truth(block.rounded_up_to_one()))) return;
    std::vector<bool> tied;
    for (std::size_t i = 0; i < sample_.at.size(); ++i) tied.push_back(block.is_tied(i));
    const auto columns = static_cast<std::size_t>(sample_.columns);
    const auto size = [&](bool marked) { return product_in(head_.ref, head_.ref, columns, tied, marked); };
    const auto rate = [&](bool marked) {
      return product_in(error_, head_.ref, columns, tied, marked) / size(marked);
    };
    if (!(size(false) >= ref2_ / 10 && std::fabs(rate(false)) <= std::fabs(rate(true)) / 2)) return;
    add_source("ties", product_in(difference(model_, head_.ref), head_.ref, columns, tied, true) / ref2_);
  }

  // A rounded sink makes the whole of out smaller or larger: d out / d s = -p out.
  void add_sink() {
    const HeadData data = head_data(inputs_.c, inputs_.truth, inputs_.outputs, head_.batch, head_.head);
    const double sink = data.function.sink, change = narrowed(sink, data.format) - sink;
    if (!std::isfinite(change)) return;
    double sum = 0;
    for (std::size_t i = 0; i < head_.ref.size(); ++i) {
      const auto row = static_cast<std::size_t>(sample_.at[i / static_cast<std::size_t>(sample_.columns)]);
      sum -= std::exp(sink - data.lse[row]) * change * head_.ref[i] * head_.ref[i];
    }
    add_source("sink", sum / ref2_);
  }

  HeadStages finish() {
    for (const StageShare& stage : result_.stages) result_.remainder -= stage.share;
    if (head_.err2 > 0) result_.left = squared_error(head_, model_) / head_.err2;
    return std::move(result_);
  }

 private:
  double along_truth(const Vector& x) const { return ref2_ > 0 ? product(x, head_.ref) / ref2_ : 0; }

  // Named where it accounts for the bias.
  bool add_source(const char* source, double bias) {
    const double ratio = bias / result_.bias;
    const bool accounts = ratio >= 0.5 && ratio <= 1.5;
    if (accounts) result_.bias_sources.push_back({source, bias});
    return accounts;
  }

  RoundedBlock whole_rows() {
    data_ = head_data(inputs_.c, inputs_.truth, inputs_.outputs, head_.batch, head_.head);
    std::vector<std::int64_t> keys(static_cast<std::size_t>(data_.sk));
    std::iota(keys.begin(), keys.end(), 0);
    return {data_, sample_.at, keys};
  }

  const StageInputs& inputs_;
  const SampledTensor& sample_;
  const SampledTensor::Head& head_;
  Vector error_;
  double ref2_;
  Vector model_;  // with the stages so far
  HeadData data_;
  HeadStages result_;
};

bool is_of_rows(TensorName tensor) {
  return tensor == TensorName::kOut || tensor == TensorName::kDq;
}

}  // namespace

HeadStages measure_stages(const StageInputs& inputs, const SampledTensor& sample,
                          const SampledTensor::Head& head, const Roundings& roundings, bool explain_bias) {
  Measurement measurement(inputs, sample, head);
  if (head.err2 == 0) return measurement.finish();
  const std::vector<Step> steps = steps_of(roundings, sample.tensor);
  std::vector<Roundings> wanted;
  wanted.reserve(steps.size() + 2);
  for (const Step& step : steps) wanted.push_back(step.roundings);
  const bool sums_differ = explain_bias && sample.tensor == TensorName::kOut && roundings.exact_sum;
  if (sums_differ) {
    wanted.push_back(roundings);
    wanted.push_back(roundings);
    wanted.back().exact_sum = false;
  }
  const std::vector<Vector> models = modelled(inputs, sample, head, wanted);
  for (std::size_t i = 0; i < steps.size(); ++i) measurement.add(steps[i].stage, models[i]);
  measurement.add_output();
  if (sums_differ) measurement.add_row_sum(models[steps.size()], models[steps.size() + 1]);
  if (explain_bias && is_of_rows(sample.tensor)) measurement.add_ties(sums_differ);
  return measurement.finish();
}

HeadStages measure_model(const StageInputs& inputs, const SampledTensor& sample,
                         const SampledTensor::Head& head, const RoundingModel& model, bool explain_bias) {
  Measurement measurement(inputs, sample, head);
  if (head.err2 == 0) return measurement.finish();
  measurement.add(model.cause.substr(model.cause.find(':') + 1), emulated(inputs, sample, head, model));
  // It has rounded all but what heads share.
  if (!is_of_rows(sample.tensor)) measurement.add_output();
  if (explain_bias && is_of_rows(sample.tensor)) {
    measurement.add_ties(false);
    if (sample.tensor == TensorName::kOut) measurement.add_sink();
  }
  return measurement.finish();
}

}  // namespace sinkscope
