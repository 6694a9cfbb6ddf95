// SPDX-License-Identifier: Apache-2.0
// What a path's errors do to a training step: how much longer or shorter its gradients are than exact attention's, which
// cause and which head make them so, and the same in a sentence.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "src/diff/diff.hpp"
#include "src/explain/finding.hpp"
#include "src/inputs/case.hpp"

namespace sinkscope {

// Squared norms of what a path gave, of the truth, and of their difference. NaN where what it gave is not finite.
struct Norms {
  double got = 0, ref = 0, error = 0;
  double change() const { return got - ref; }
};

// One head of one tensor, over all batch entries and documents.
struct HeadGradient {
  TensorName tensor = TensorName::kDq;
  std::int64_t head = 0;  // a key/value head in dk and dv
  Norms norm2;
  double gain = 0;            // <got, ref> / <ref, ref>; NaN where ref is zero or got not finite
  double predicted_gain = 0;  // <pred, ref> / <ref, ref>: pred is exact but for the mistakes that were found
};

struct CauseShare {
  std::string cause;  // of a finding, or "rounding": what no finding is about
  double share = 0;
};

struct HeadShare {
  bool of_keys = false;
  std::int64_t head = 0;
  double share = 0;
};

// `layer` is dq, dk and dv together, those that the path gave: gradients of activations, which the weights' gradients are
// made of. `sinks` is dsinks, the gradient of a parameter, which goes into a global gradient norm by itself.
struct Training {
  bool given = false;               // the path gave a gradient
  std::vector<HeadGradient> heads;  // of out, dq, dk, dv and dsinks
  Norms layer, sinks;
  bool changed = false;  // |layer.change()| > u layer.ref, the case's unit roundoff: else shares mean nothing
  bool sinks_train = true;  // false: the sinks get no gradient, or zeros where it is not zero
  // Signed shares of layer.change(); either list sums to 1, or is empty where nothing changed.
  std::vector<CauseShare> causes;  // in the order in which they were found
  std::vector<HeadShare> shares;   // the largest first
  std::string sentence, recommendation;
};

// What the mistakes that were found make of the truth, as far as it goes into shares and gains.
struct Consequences {
  std::vector<std::pair<std::string, double>> causes;           // change of the layer's squared norm
  std::map<std::pair<TensorName, std::int64_t>, double> along;  // of a head: <pred - ref, ref>
  std::map<std::pair<std::int64_t, std::int64_t>, double>
      of_keys;  // (query head, kv head): its part of |pred|^2 - |ref|^2 in dk and dv
};

// `metrics` are those of the path's outputs. Query head h accounts for its dq and for what mistakes in it make of dk and
// dv, which are sums over heads: |pred|^2 - |ref|^2 = sum_h <pred_h - ref_h, pred + ref>; a kv head for the rest of its
// dk and dv, which no mistake in one of its query heads is known to make.
Training training_of(const Case& c, const std::vector<TensorMetrics>& metrics,
                     const std::vector<Finding>& findings, const Consequences& consequences,
                     bool dsinks_missing);

// Of the layer's gradients?
inline constexpr bool is_layer_gradient(TensorName tensor) {
  return tensor == TensorName::kDq || is_of_keys(tensor);
}

// "head 6", "kv head 1".
std::string head_text(const HeadShare& share);

// Fills in `sentence` and `recommendation`, from the numbers and the findings.
void put_into_words(Training& training, const std::vector<Finding>& findings);

}  // namespace sinkscope
