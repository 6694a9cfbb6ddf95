// SPDX-License-Identifier: Apache-2.0
// What is refused, with the value seen and the value wanted, before anything is launched. What lies on the
// device (cu_seqlens, strided data) cannot be looked at and is trusted.
#pragma once

#include "kernels/sink_attention.h"

namespace sink_attention::cuda {

Status check_forward(const ForwardParams& params);
Status check_backward(const BackwardParams& params);

// The error of the last launch on this thread, as a status that names what was launched.
Status check_launch(const char* what);

}  // namespace sink_attention::cuda
