// SPDX-License-Identifier: Apache-2.0
// Which mistakes a spike is made of.
#pragma once

#include <string>
#include <vector>

#include "src/gate/gate.hpp"
#include "src/lab/lab.hpp"
#include "src/record/run_record.hpp"

namespace sinkscope {

inline constexpr const char* kRest = "rounding and rest";

struct SpikeAt {
  std::int64_t step = 0;
  double path2 = 0, exact2 = 0;  // |g|^2 and |g_e|^2
  double rise = 0;               // |g|^2 - m^2: what shares are shares of
};

// Looks for the mistakes in a captured attention call of the training path (explain, under `gate`), plants those that can be
// planted in exact attention of all layers, alone and together, and shares |g|^2 - |g_e|^2 out among them (shapley_shares).
// The rest comes last. Between gradient() and apply() of the step.
std::vector<CauseRow> causes_of(lab::Lab& lab, const lab::StepSettings& settings, const SpikeAt& spike,
                                const std::string& attention_capture, const Gate& gate, int threads);

}  // namespace sinkscope
