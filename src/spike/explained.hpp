// SPDX-License-Identifier: Apache-2.0
// How much of a gradient spike is the attention's doing: the gradient g of a path beside g_e, that of exact attention at
// the same weights and batch.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sinkscope {

// A part of all parameters. Squared norms of disjoint blocks add up.
struct BlockName {
  std::int64_t layer = -1;  // -1: outside the layers (embedding, head, final norm)
  std::string tensor;       // "q", "k", "v", "sink", "other", "outside"
  std::int64_t head = -1;   // a key/value head of k and v; -1: not of one head
  bool operator==(const BlockName&) const = default;
};

struct BlockNorms {
  BlockName name;
  double path2 = 0;   // |g|^2
  double exact2 = 0;  // |g_e|^2
  double error2 = 0;  // |g - g_e|^2
};

// "layer 2 q of head 3", "layer 2 k of kv head 1", "layer 0 other", "outside the layers".
std::string text(const BlockName& name);

// What came before the spike: medians of the norm under the path and under exact attention, and the spread of log |g|
// under the path (StepJudgement::spread), which serves both: exact norms are sampled too seldom for one of their own.
struct BeforeSpike {
  double median = 0, exact_median = 0;
  double spread = 0;
};

// kRemoved: with exact attention the step would be no spike. kPersists: it would still be one, a smaller or another one.
// kNotAttention: it would, and attention explains less than a tenth of it.
enum class SpikeVerdict { kRemoved, kPersists, kNotAttention };
std::string_view text(SpikeVerdict verdict);
SpikeVerdict spike_verdict_from_text(std::string_view text);  // throws InputError

struct ExplainedSpike {
  double path2 = 0, exact2 = 0, error2 = 0;  // over all blocks
  double fraction = 0;                       // F
  std::vector<double> shares;                // of each block, in their order: they sum to F
  SpikeVerdict verdict = SpikeVerdict::kRemoved;
};

// The explained fraction F = (|g|^2 - |g_e|^2) / (|g|^2 - m^2), m the median norm under the path: 1 where exact attention
// brings the step back to what was usual, 0 where it changes nothing, over 1 or under 0 where it overshoots or makes it
// worse. Signed, not clamped. The verdict asks whether log |g_e| is more than `threshold` spreads over that of
// exact_median. Only for detected spikes: throws std::invalid_argument unless |g| > m > 0.
ExplainedSpike explain_spike(const std::vector<BlockNorms>& blocks, const BeforeSpike& before,
                             double threshold);

}  // namespace sinkscope
