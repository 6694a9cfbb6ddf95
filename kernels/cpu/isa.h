// SPDX-License-Identifier: Apache-2.0
// Which instruction set runs.
#pragma once

#include "kernels/cpu/config.h"

namespace sink_attention::cpu {

// Does this processor (and this process) have it? kAuto: is there any?
bool isa_available(Isa isa);

// The table of an available instruction set; kAuto: the best one for the format.
const IsaTable& isa_table(Isa isa, DType dtype);

}  // namespace sink_attention::cpu
