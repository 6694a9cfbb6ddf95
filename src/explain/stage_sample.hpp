// SPDX-License-Identifier: Apache-2.0
// Samples of a path's outputs, and what the model with roundings says of the same rows.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "src/explain/rounding.hpp"
#include "src/explain/row_scalars.hpp"

namespace sinkscope {

// Rows' LSEs and Deltas that were worked out, for each batch, query head and rounding that decides them.
class ScalarMemo {
 public:
  std::shared_ptr<const RowScalars> get(std::int64_t batch, std::int64_t head, const HeadData& data,
                                        const Roundings& r);

 private:
  struct Entry {
    std::int64_t batch, head;
    Roundings roundings;
    std::shared_ptr<const RowScalars> scalars;
  };
  std::mutex mutex_;
  std::vector<Entry> entries_;
};

// Heads under a whole model, likewise.
class EmulationMemo {
 public:
  std::shared_ptr<const HeadResult> get(const Case& c, std::int64_t batch, std::int64_t head,
                                        const RoundingModel& model);

 private:
  std::mutex mutex_;
  std::map<std::tuple<std::string, std::int64_t, std::int64_t>, std::shared_ptr<const HeadResult>> known_;
};

// What the model is held against. A path's own out or LSE is only what its backward may start from where it is right.
struct StageInputs {
  const Case& c;
  const Truth& truth;
  const Outputs& outputs;
  bool own_out = true, own_lse = true;
  int threads = 0;
  ScalarMemo* scalars = nullptr;
  EmulationMemo* emulations = nullptr;
};

// Some rows (for dk and dv: keys) of some heads of one tensor; of dsinks the whole.
struct SampledTensor {
  struct Head {
    std::int64_t batch = 0, head = 0;
    std::vector<double> got, ref;  // [at, columns]
    double err2 = 0;               // sum of squared errors
    double rounding2 = 0;  // what rounding got to its format makes of that on average: spacing^2 / 12 each
  };
  TensorName tensor = TensorName::kOut;
  Narrow stored = Narrow::kNone;
  std::int64_t columns = 1;
  std::vector<std::int64_t> at;
  std::vector<Head> heads;
};

using HeadIndex = std::pair<std::int64_t, std::int64_t>;  // batch, head of the tensor

// At most `most` rows of each head, spread evenly.
SampledTensor sampled(const StageInputs& inputs, TensorName tensor, const std::vector<HeadIndex>& heads,
                      std::int64_t most);

// What the model says of one head of a sample, once for each of `roundings`, before it is rounded to its format.
std::vector<std::vector<double>> modelled(const StageInputs& inputs, const SampledTensor& sample,
                                          const SampledTensor::Head& head,
                                          std::span<const Roundings> roundings);

// The same under a whole model, which rounds its results.
std::vector<double> emulated(const StageInputs& inputs, const SampledTensor& sample,
                             const SampledTensor::Head& head, const RoundingModel& model);

// Sum of squares of got - model, where both are finite.
double squared_error(const SampledTensor::Head& head, const std::vector<double>& model);

}  // namespace sinkscope
