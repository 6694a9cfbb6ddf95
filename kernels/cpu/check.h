// SPDX-License-Identifier: Apache-2.0
// What is refused, with the value seen and the value wanted, before anything is written.
#pragma once

#include "kernels/sink_attention.h"

namespace sink_attention::cpu {

Status check_forward(const ForwardParams& params, const Options& options);
Status check_backward(const BackwardParams& params, const Options& options);

[[gnu::format(printf, 2, 3)]] Status refuse(Status::Code code, const char* format, ...);

}  // namespace sink_attention::cpu
