// SPDX-License-Identifier: Apache-2.0
// Where the error of a right function comes from: which of its roundings make it, and how much each.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/core/tensor_name.hpp"
#include "src/diff/diff.hpp"
#include "src/explain/finding.hpp"
#include "src/explain/rounding.hpp"
#include "src/explain/stage_info.hpp"
#include "src/gate/gate.hpp"
#include "src/inputs/case.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {

// What one stage of the algorithm contributes to the error e of a head. e_s is what the double-precision model changes by
// when the stage's rounding is switched on after those of the stages before it.
struct StageShare {
  std::string stage;  // "delta": the finding "rounding:delta"
  double share = 0;   // <e, e_s> / <e, e>
  double bias = 0;    // <e_s, truth> / <truth, truth>
  bool expected =
      false;  // the model does not know which way it went: share is the mean of its square, bias unknown
};

// A mechanism that accounts for a head's signed bias.
struct BiasSource {
  // "row_sum": P is rounded in PV and not in the row's sum; "ties": at the row's maximum; "sink": it is rounded itself.
  std::string source;
  double bias = 0;  // that it makes
};

struct HeadStages {
  TensorName tensor = TensorName::kOut;
  std::int64_t batch = 0, head = 0;      // key/value heads of dk and dv
  double z_rms = 0;                      // of the whole head, in units of what the format makes unavoidable
  std::vector<StageShare> stages;        // in the order of the algorithm
  double remainder = 1;                  // 1 - their sum
  double left = 1;                       // |e - sum e_s|^2 / <e, e>, of the stages that are not expected
  double bias = 0;                       // <e, truth> / <truth, truth>
  bool biased = false;                   // is that beyond chance (bias_is_significant())?
  std::vector<BiasSource> bias_sources;  // of one that is: what accounts for it
};

using TensorHead = std::pair<TensorName, std::pair<std::int64_t, std::int64_t>>;  // tensor, batch, head

// A path whose function is right, as far as `heads` go.
struct StagesOf {
  const Case& c;
  const Truth& truth;
  const Gate& gate;
  const Outputs& outputs;
  const std::vector<TensorMetrics>& metrics;  // of `outputs`
  std::vector<TensorHead> heads;
  // Are the path's own out and LSE right? Else nothing is said to come from them.
  bool own_out = true, own_lse = true;
  std::optional<RoundingModel> model;  // where the whole algorithm is known already
  int threads = 0;
};

// The stages of those heads of out, dq, dk, dv and dsinks. Which roundings a path makes is decided once for each tensor,
// from all of them. Heads are sampled: at most 256 rows or keys, evenly spread.
std::vector<HeadStages> rounding_stages(const StagesOf& path);

// The mean over the heads of a tensor; each head of dsinks, one number, counts by its squared z.
struct TensorStages {
  TensorName tensor = TensorName::kOut;
  std::vector<StageShare> stages;  // without biases
  double remainder = 0;
  double z_rms = 0;  // the largest of a head
};
std::vector<TensorStages> stages_by_tensor(const std::vector<HeadStages>& stages);

// One finding for each stage that makes at least a tenth of the squared error of some tensor, the largest first.
std::vector<Finding> findings_of_stages(const AttentionShape& shape, const std::vector<HeadStages>& stages);

}  // namespace sinkscope
