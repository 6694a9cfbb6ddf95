// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/check.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <initializer_list>

#include "kernels/cpu/config.h"
#include "kernels/cpu/isa.h"

namespace sink_attention::cpu {
namespace {

using Code = Status::Code;

long long number(std::int64_t x) {
  return static_cast<long long>(x);
}

Status check_offsets(const std::int32_t* cu, std::int32_t documents, std::int64_t total, const char* name) {
  if (cu[0] != 0) return refuse(Code::kInvalidArgument, "%s starts at %d, wanted 0", name, cu[0]);
  for (std::int32_t i = 0; i < documents; ++i) {
    if (cu[i + 1] < cu[i]) {
      return refuse(Code::kInvalidArgument, "%s falls from %d to %d at %d, wanted rising offsets", name,
                    cu[i], cu[i + 1], i + 1);
    }
  }
  if (cu[documents] != total) {
    return refuse(Code::kInvalidArgument, "%s ends at %d, wanted %lld", name, cu[documents], number(total));
  }
  return {};
}

Status check_problem(const Problem& p) {
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
  if (p.d < 1 || p.d > kMostHeadDim) {
    return refuse(Code::kUnsupported, "head dim %lld, wanted 1 to %lld", number(p.d), number(kMostHeadDim));
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
  const Status rows = check_offsets(p.cu_seqlens_q, p.documents, p.sq, "cu_seqlens_q");
  return rows.ok() ? check_offsets(p.cu_seqlens_k, p.documents, p.sk, "cu_seqlens_k") : rows;
}

Status check_given(const void* data, std::int64_t elements, const char* name) {
  if (data == nullptr && elements > 0)
    return refuse(Code::kInvalidArgument, "%s is null, wanted a tensor", name);
  return {};
}

Status check_residual(const Problem& p, const std::int8_t* residual) {
  if (residual == nullptr || p.dtype != DType::kFp32) return {};
  return refuse(Code::kUnsupported, "a residual with fp32, wanted bf16 or fp16");
}

Status check_workspace(const void* workspace, std::size_t seen, std::size_t wanted) {
  if (seen >= wanted && (workspace != nullptr || wanted == 0)) return {};
  return refuse(Code::kInvalidArgument, "a workspace of %zu bytes%s, wanted %zu", seen,
                workspace == nullptr ? " (null)" : "", wanted);
}

Status first_of(std::initializer_list<Status> statuses) {
  for (const Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return {};
}

Status check_isa(const Problem& p, const Options& options) {
  if (options.isa == Isa::kAmx && p.dtype != DType::kBf16)
    return refuse(Code::kUnsupported, "isa amx with fp16 or fp32, wanted bf16");
  if (!isa_available(options.isa)) {
    return refuse(Code::kUnsupported, "this processor lacks the instruction set asked for (%s)",
                  options.isa == Isa::kAmx      ? "amx"
                  : options.isa == Isa::kAvx512 ? "avx512"
                                                : "avx2");
  }
  return {};
}

}  // namespace

Status refuse(Code code, const char* format, ...) {
  Status status;
  status.code = code;
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(status.message, sizeof status.message, format, arguments);
  va_end(arguments);
  return status;
}

Status check_forward(const ForwardParams& f, const Options& options) {
  const Status problem = first_of({check_problem(f.problem), check_isa(f.problem, options)});
  if (!problem.ok()) return problem;
  const Problem& p = f.problem;
  return first_of({check_given(f.q.data, p.sq, "q"), check_given(f.k.data, p.sk, "k"),
                   check_given(f.v.data, p.sk, "v"), check_given(f.out.data, p.sq, "out"),
                   check_residual(p, f.residual),
                   check_workspace(f.workspace, f.workspace_bytes, forward_workspace_bytes(p, options))});
}

Status check_backward(const BackwardParams& w, const Options& options) {
  const Status problem = first_of({check_problem(w.problem), check_isa(w.problem, options)});
  if (!problem.ok()) return problem;
  const Problem& p = w.problem;
  return first_of({check_given(w.q.data, p.sq, "q"), check_given(w.k.data, p.sk, "k"),
                   check_given(w.v.data, p.sk, "v"), check_given(w.out.data, p.sq, "out"),
                   check_given(w.dout.data, p.sq, "dout"), check_given(w.lse, p.sq, "lse"),
                   check_residual(p, w.residual),
                   check_workspace(w.workspace, w.workspace_bytes, backward_workspace_bytes(p, options))});
}

}  // namespace sink_attention::cpu
