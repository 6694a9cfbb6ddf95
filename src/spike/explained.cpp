// SPDX-License-Identifier: Apache-2.0
#include "src/spike/explained.hpp"

#include <array>
#include <cmath>
#include <stdexcept>

#include "fmt/format.h"

#include "src/core/error.hpp"

namespace sinkscope {
namespace {

constexpr double kLittle = 0.1;  // of the rise of |g|^2
constexpr std::array<std::string_view, 3> kVerdicts = {"removed", "persists", "not attention"};

}  // namespace

std::string text(const BlockName& name) {
  if (name.layer < 0) return "outside the layers";
  if (name.head < 0) return fmt::format("layer {} {}", name.layer, name.tensor);
  const bool of_keys = name.tensor == "k" || name.tensor == "v";
  return fmt::format("layer {} {} of {}head {}", name.layer, name.tensor, of_keys ? "kv " : "", name.head);
}

std::string_view text(SpikeVerdict verdict) {
  return kVerdicts.at(static_cast<std::size_t>(verdict));
}

SpikeVerdict spike_verdict_from_text(std::string_view text) {
  for (std::size_t i = 0; i < kVerdicts.size(); ++i) {
    if (kVerdicts[i] == text) return static_cast<SpikeVerdict>(i);
  }
  throw InputError(
      fmt::format("the verdict on a spike is '{}', wanted removed, persists or not attention", text));
}

ExplainedSpike explain_spike(const std::vector<BlockNorms>& blocks, const BeforeSpike& before,
                             double threshold) {
  ExplainedSpike spike;
  for (const BlockNorms& block : blocks) {
    spike.path2 += block.path2;
    spike.exact2 += block.exact2;
    spike.error2 += block.error2;
  }
  const double rise = spike.path2 - before.median * before.median;
  if (!(before.median > 0) || !(rise > 0)) {
    throw std::invalid_argument(fmt::format("a step of norm {} after a median of {} is not a spike",
                                            std::sqrt(spike.path2), before.median));
  }
  for (const BlockNorms& block : blocks) spike.shares.push_back((block.path2 - block.exact2) / rise);
  spike.fraction = (spike.path2 - spike.exact2) / rise;
  const double exact_z = (std::log(spike.exact2) / 2 - std::log(before.exact_median)) / before.spread;
  if (!(exact_z <= threshold)) {
    spike.verdict = spike.fraction < kLittle ? SpikeVerdict::kNotAttention : SpikeVerdict::kPersists;
  }
  return spike;
}

}  // namespace sinkscope
