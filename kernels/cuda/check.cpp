// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/check.hpp"

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/check.h"

namespace sink_attention::cuda {
namespace {

using Code = Status::Code;

constexpr std::int64_t kMostRows = std::int64_t{1} << 31;    // coordinates of the copy engine are int32
constexpr std::int64_t kMostStride = std::int64_t{1} << 39;  // elements: 2^40 bytes
constexpr std::int64_t kAlignment = 16;                      // bytes, of the copy engine

Status check_problem(const Problem& p) {
  if (p.dtype != DType::kBf16 && p.dtype != DType::kFp16)
    return refuse(Code::kUnsupported, "fp32 on the GPU, wanted bf16 or fp16");
  if (p.d != 64 && p.d != 128)
    return refuse(Code::kUnsupported, "head dim %lld, wanted 64 or 128", number(p.d));
  if (p.sq < 0 || p.sk < 0 || p.sq >= kMostRows || p.sk >= kMostRows) {
    return refuse(Code::kInvalidArgument, "sq %lld, sk %lld: wanted 0 to 2^31 - 1 each", number(p.sq),
                  number(p.sk));
  }
  const Status common = check_sizes_and_masks(p);
  if (!common.ok()) return common;
  if (p.b * p.hq >= kMostRows / 64 || p.b * p.hq * ((p.sq + p.sk) / 64 + p.documents + 2) >= kMostRows) {
    return refuse(Code::kUnsupported, "b %lld, hq %lld, sq %lld, sk %lld: wanted under 2^31 tiles of 64 rows",
                  number(p.b), number(p.hq), number(p.sq), number(p.sk));
  }
  return {};
}

// A tensor [b, h, s, d]: what the copy engine and 16-byte stores need of its address and strides.
Status check_tensor(const ConstTensor& t, std::int64_t b, std::int64_t h, std::int64_t s, const char* name,
                    bool written) {
  if (s == 0) return {};
  if (t.data == nullptr) return refuse(Code::kInvalidArgument, "%s is null, wanted a tensor", name);
  if (reinterpret_cast<std::uintptr_t>(t.data) % kAlignment != 0) {
    return refuse(Code::kUnsupported, "%s lies at %p, wanted a multiple of %lld bytes", name, t.data,
                  number(kAlignment));
  }
  const struct {
    std::int64_t size, stride;
    const char* dim;
  } dims[] = {{b, t.stride_b, "batch"}, {h, t.stride_h, "head"}, {s, t.stride_s, "row"}};
  for (const auto& [size, stride, dim] : dims) {
    if (size == 1) continue;
    if (stride * 2 % kAlignment != 0 || stride < 0 || stride >= kMostStride) {
      return refuse(Code::kUnsupported,
                    "%s has a %s stride of %lld elements, wanted a multiple of 8 from 0 to 2^39", name, dim,
                    number(stride));
    }
    if (written && stride == 0)
      return refuse(Code::kInvalidArgument, "%s has a %s stride of 0, wanted room for each", name, dim);
  }
  return {};
}

Status check_output(const MutableTensor& t, std::int64_t b, std::int64_t h, std::int64_t s,
                    const char* name) {
  return check_tensor({t.data, t.stride_b, t.stride_h, t.stride_s}, b, h, s, name, true);
}
Status check_wanted_output(const MutableTensor& t, std::int64_t b, std::int64_t h, std::int64_t s,
                           const char* name) {
  return t.data == nullptr ? Status{} : check_output(t, b, h, s, name);
}

Status check_residual(const std::int8_t* residual) {
  if (reinterpret_cast<std::uintptr_t>(residual) % kAlignment == 0) return {};
  return refuse(Code::kUnsupported, "the residual lies at %p, wanted a multiple of %lld bytes",
                static_cast<const void*>(residual), number(kAlignment));
}

Status check_workspace(const void* workspace, std::size_t seen, std::size_t wanted) {
  const Status size = check_workspace_size(workspace, seen, wanted);
  if (!size.ok() || reinterpret_cast<std::uintptr_t>(workspace) % kAlignment == 0) return size;
  return refuse(Code::kInvalidArgument, "the workspace lies at %p, wanted a multiple of %lld bytes",
                workspace, number(kAlignment));
}

}  // namespace

Status available() {
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) {
    cudaGetLastError();  // a later launch must not be blamed for it
    return refuse(Code::kDeviceError, "no CUDA device: %s", cudaGetErrorString(error));
  }
  if (major == 9 && minor == 0) return {};
  return refuse(Code::kUnsupported, "a GPU of compute capability %d.%d, wanted 9.0", major, minor);
}

Status check_launch(const char* what) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return {};
  return refuse(Code::kDeviceError, "launching %s: %s", what, cudaGetErrorString(error));
}

Status check_forward(const ForwardParams& f) {
  const Problem& p = f.problem;
  const Status problem = check_problem(p);
  if (!problem.ok()) return problem;
  return first_of({check_tensor(f.q, p.b, p.hq, p.sq, "q", false),
                   check_tensor(f.k, p.b, p.hkv, p.sk, "k", false),
                   check_tensor(f.v, p.b, p.hkv, p.sk, "v", false),
                   check_output(f.out, p.b, p.hq, p.sq, "out"), check_residual(f.residual),
                   check_workspace(f.workspace, f.workspace_bytes, forward_workspace_bytes(p)), available()});
}

Status check_backward(const BackwardParams& w) {
  const Problem& p = w.problem;
  const Status problem = check_problem(p);
  if (!problem.ok()) return problem;
  if (w.lse == nullptr && p.sq > 0)
    return refuse(Code::kInvalidArgument, "lse is null, wanted the forward's");
  return first_of(
      {check_tensor(w.q, p.b, p.hq, p.sq, "q", false), check_tensor(w.k, p.b, p.hkv, p.sk, "k", false),
       check_tensor(w.v, p.b, p.hkv, p.sk, "v", false), check_tensor(w.out, p.b, p.hq, p.sq, "out", false),
       check_tensor(w.dout, p.b, p.hq, p.sq, "dout", false), check_residual(w.residual),
       check_wanted_output(w.dq, p.b, p.hq, p.sq, "dq"), check_wanted_output(w.dk, p.b, p.hkv, p.sk, "dk"),
       check_wanted_output(w.dv, p.b, p.hkv, p.sk, "dv"),
       check_workspace(w.workspace, w.workspace_bytes, backward_workspace_bytes(p)), available()});
}

}  // namespace sink_attention::cuda
