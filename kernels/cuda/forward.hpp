// SPDX-License-Identifier: Apache-2.0
// The forward's kernel for each type and head dim, one translation unit each; `group` where the rows of a
// tile are of a group of heads.
#pragma once

#include "kernels/sink_attention.h"

namespace sink_attention::cuda {

struct ForwardArguments;

// Launches the kernel on this many blocks; the arguments' tensor maps have boxes of one tile of rows or keys.
using ForwardLaunch = Status (*)(const ForwardArguments& arguments, int blocks, void* stream);
Status launch_forward_bf16_d64(const ForwardArguments& arguments, int blocks, void* stream);
Status launch_forward_bf16_d128(const ForwardArguments& arguments, int blocks, void* stream);
Status launch_forward_fp16_d64(const ForwardArguments& arguments, int blocks, void* stream);
Status launch_forward_fp16_d128(const ForwardArguments& arguments, int blocks, void* stream);
Status launch_forward_group_bf16_d64(const ForwardArguments& arguments, int blocks, void* stream);
Status launch_forward_group_bf16_d128(const ForwardArguments& arguments, int blocks, void* stream);
Status launch_forward_group_fp16_d64(const ForwardArguments& arguments, int blocks, void* stream);
Status launch_forward_group_fp16_d128(const ForwardArguments& arguments, int blocks, void* stream);

}  // namespace sink_attention::cuda
