// SPDX-License-Identifier: Apache-2.0
// The kernel's CUDA backend under C names, as a shared library for scripts that time it beside peers of their own
// language (tools/bench_peers). The parameters are the interface's own structs; a caller that mirrors them compares
// their sizes with those that sink_attention_struct_bytes() gives.
#include <cstring>

#include "kernels/sink_attention.h"

namespace sa = sink_attention;

namespace {

// The code, and the message where there is room for Status::kMessageBytes.
int told(const sa::Status& status, char* message) {
  if (message != nullptr) std::memcpy(message, status.message, sa::Status::kMessageBytes);
  return static_cast<int>(status.code);
}

}  // namespace

extern "C" {

int sink_attention_forward(const sa::ForwardParams* params, void* stream, char* message) {
  return told(sa::cuda::forward(*params, stream), message);
}

int sink_attention_backward(const sa::BackwardParams* params, void* stream, char* message) {
  return told(sa::cuda::backward(*params, stream), message);
}

std::size_t sink_attention_forward_workspace_bytes(const sa::Problem* problem) {
  return sa::cuda::forward_workspace_bytes(*problem);
}

std::size_t sink_attention_backward_workspace_bytes(const sa::Problem* problem) {
  return sa::cuda::backward_workspace_bytes(*problem);
}

// Of Problem, ForwardParams and BackwardParams.
void sink_attention_struct_bytes(std::size_t bytes[3]) {
  bytes[0] = sizeof(sa::Problem);
  bytes[1] = sizeof(sa::ForwardParams);
  bytes[2] = sizeof(sa::BackwardParams);
}

}  // extern "C"
