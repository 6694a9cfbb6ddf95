// SPDX-License-Identifier: Apache-2.0
// The one mistake that is no input transform: logits that a tanh bounds.
#pragma once

#include "src/truth/truth.hpp"

namespace sinkscope {

// One head with S_ij = cap tanh(scale q_i . k_j / cap), by the formulas of the reference otherwise; b, hq and hkv are 1.
// Sigma has the terms of the format (Eq. 14 to 20 without those in braces, and with tau from the bounded logit).
Truth evaluate_softcap(const reference::Problem& problem, const reference::Inputs& inputs,
                       const reference::Rounding& rounding, double cap);

}  // namespace sinkscope
