// SPDX-License-Identifier: Apache-2.0
// What is refused, with the value seen and the value wanted, before anything is written.
#pragma once

#include "kernels/sink_attention.h"

namespace sink_attention::cpu {

Status check_forward(const ForwardParams& params, const Options& options);
Status check_backward(const BackwardParams& params, const Options& options);

}  // namespace sink_attention::cpu
