// SPDX-License-Identifier: Apache-2.0
#include "kernels/check.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace sink_attention {

using Code = Status::Code;

Status refuse(Code code, const char* format, ...) {
  Status status;
  status.code = code;
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(status.message, sizeof status.message, format, arguments);
  va_end(arguments);
  return status;
}

Status first_of(std::initializer_list<Status> statuses) {
  for (const Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return {};
}

Status check_sizes_and_masks(const Problem& p) {
  if (p.b < 1 || p.hq < 1 || p.hkv < 1) {
    return refuse(Code::kInvalidArgument, "b %lld, hq %lld, hkv %lld: wanted at least 1 each", number(p.b),
                  number(p.hq), number(p.hkv));
  }
  if (p.sq < 0 || p.sk < 0) {
    return refuse(Code::kInvalidArgument, "sq %lld, sk %lld: wanted at least 0 each", number(p.sq),
                  number(p.sk));
  }
  if (p.hq % p.hkv != 0) {
    return refuse(Code::kInvalidArgument, "hq %lld is not a multiple of hkv %lld", number(p.hq),
                  number(p.hkv));
  }
  if (!std::isfinite(p.scale))
    return refuse(Code::kInvalidArgument, "scale %g, wanted a finite number", static_cast<double>(p.scale));
  if (p.window < 0 || (p.window > 0 && !p.causal)) {
    return refuse(Code::kInvalidArgument, "window %lld with causal %d, wanted 0, or more with causal",
                  number(p.window), p.causal ? 1 : 0);
  }
  if ((p.cu_seqlens_q == nullptr) != (p.cu_seqlens_k == nullptr)) {
    return refuse(Code::kInvalidArgument,
                  "one of cu_seqlens_q and cu_seqlens_k is null, wanted both or neither");
  }
  if (p.cu_seqlens_q == nullptr) return {};
  if (p.b != 1) return refuse(Code::kInvalidArgument, "b %lld with packed documents, wanted 1", number(p.b));
  if (p.documents < 1)
    return refuse(Code::kInvalidArgument, "documents %d with cu_seqlens, wanted at least 1", p.documents);
  return {};
}

Status check_workspace_size(const void* workspace, std::size_t seen, std::size_t wanted) {
  if (seen >= wanted && (workspace != nullptr || wanted == 0)) return {};
  return refuse(Code::kInvalidArgument, "a workspace of %zu bytes%s, wanted %zu", seen,
                workspace == nullptr ? " (null)" : "", wanted);
}

}  // namespace sink_attention
