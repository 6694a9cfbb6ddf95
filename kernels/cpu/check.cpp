// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/check.h"

#include "kernels/check.h"
#include "kernels/cpu/config.h"
#include "kernels/cpu/isa.h"

namespace sink_attention::cpu {
namespace {

using Code = Status::Code;

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

Status check_head_dim(const Problem& p) {
  if (p.d >= 1 && p.d <= kMostHeadDim) return {};
  return refuse(Code::kUnsupported, "head dim %lld, wanted 1 to %lld", number(p.d), number(kMostHeadDim));
}

Status check_documents(const Problem& p) {
  if (p.cu_seqlens_q == nullptr) return {};
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

// The problem itself, before anything is worked out from it.
Status check_problem(const Problem& p, const Options& options) {
  const Status sizes = first_of({check_sizes_and_masks(p), check_head_dim(p)});
  return sizes.ok() ? first_of({check_documents(p), check_isa(p, options)}) : sizes;
}

}  // namespace

Status check_forward(const ForwardParams& f, const Options& options) {
  const Status problem = check_problem(f.problem, options);
  if (!problem.ok()) return problem;
  const Problem& p = f.problem;
  return first_of(
      {check_given(f.q.data, p.sq, "q"), check_given(f.k.data, p.sk, "k"), check_given(f.v.data, p.sk, "v"),
       check_given(f.out.data, p.sq, "out"), check_residual(p, f.residual),
       check_workspace_size(f.workspace, f.workspace_bytes, forward_workspace_bytes(p, options))});
}

Status check_backward(const BackwardParams& w, const Options& options) {
  const Status problem = check_problem(w.problem, options);
  if (!problem.ok()) return problem;
  const Problem& p = w.problem;
  return first_of(
      {check_given(w.q.data, p.sq, "q"), check_given(w.k.data, p.sk, "k"), check_given(w.v.data, p.sk, "v"),
       check_given(w.out.data, p.sq, "out"), check_given(w.dout.data, p.sq, "dout"),
       check_given(w.lse, p.sq, "lse"), check_residual(p, w.residual),
       check_workspace_size(w.workspace, w.workspace_bytes, backward_workspace_bytes(p, options))});
}

}  // namespace sink_attention::cpu
