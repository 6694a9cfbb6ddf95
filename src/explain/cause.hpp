// SPDX-License-Identifier: Apache-2.0
// The catalogue of causes: mistakes that attention with sinks is known to be computed with, each as a change of what a
// head computes.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/explain/cells.hpp"
#include "src/explain/head_function.hpp"

namespace sinkscope {

struct Cause;

// A cause with its parameters chosen. `apply` changes the function of a head, which was right or has other mistakes in
// it already; false: nothing to change there.
struct Hypothesis {
  const Cause* cause = nullptr;
  std::function<bool(HeadFunction&, std::int64_t batch, std::int64_t head)> apply;
};

// What hypotheses with free parameters are made from: a head that is wrong, what it should be, what it is.
struct Probe {
  const Case& c;
  std::int64_t batch, head;
  const HeadFunction& base;
  // The path's own out or lse of a head: [sq, d] or [sq]; empty where it gives none.
  std::function<std::vector<double>(TensorName, std::int64_t batch, std::int64_t head)> got;
};

// What a cause changes first: the forward, or only what comes after it.
enum class Stage { kForward, kBackward, kKeyHeads, kSinkGradient };

struct Cause {
  std::string_view id;
  std::string_view sentence;  // "the sink is left out of the softmax"
  std::string_view fix;
  std::string_view evidence;  // where it was met
  Stage stage = Stage::kForward;
  int parameters = 0;  // free ones
  // Why this case cannot show it ("the case has no sink"), or nothing.
  std::optional<std::string> (*invisible)(const Case&) = nullptr;
  std::vector<Hypothesis> (*hypotheses)(const Cause&, const Probe&) = nullptr;
};

// Every cause that is a hypothesis, most common first.
const std::vector<Cause>& all_causes();

// Those that are facts about the outputs themselves (facts.hpp).
const std::vector<Cause>& fact_causes();

// The groups that all_causes() is made of.
std::vector<Cause> sink_causes();
std::vector<Cause> mask_causes();
std::vector<Cause> value_causes();
std::vector<Cause> backward_causes();

// The id of a cause or of a fact; throws InputError for any other.
const Cause& find_cause(std::string_view id);

// A hypothesis that does one thing to every head.
Hypothesis hypothesis(const Cause& cause,
                      std::function<bool(HeadFunction&, std::int64_t, std::int64_t)> change);

}  // namespace sinkscope
