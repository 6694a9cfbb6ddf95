// SPDX-License-Identifier: Apache-2.0
// What every backend refuses alike, with the value seen and the value wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kernels/sink_attention.h"

namespace sink_attention {

[[gnu::format(printf, 2, 3)]] Status refuse(Status::Code code, const char* format, ...);

// The first that is not ok, or ok.
Status first_of(std::initializer_list<Status> statuses);

// For %lld.
inline long long number(std::int64_t x) {
  return static_cast<long long>(x);
}

// Sizes and masks that no backend takes. Formats, head dims and what the offsets say are the backend's to check.
Status check_sizes_and_masks(const Problem& problem);

Status check_workspace_size(const void* workspace, std::size_t seen, std::size_t wanted);

}  // namespace sink_attention
