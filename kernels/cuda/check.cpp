// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/check.hpp"

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/check.h"
#include "kernels/cuda/tensor_map.hpp"

namespace sink_attention::cuda {
namespace {

using Code = Status::Code;

constexpr std::int64_t kMostRows = std::int64_t{1} << 31;    // coordinates of the copy engine are int32
constexpr std::int64_t kMostStride = std::int64_t{1} << 39;  // elements: 2^40 bytes
constexpr std::int64_t kAlignment = 16;                      // bytes, of the copy engine

bool is_multiple(const void* address, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % static_cast<std::uintptr_t>(bytes) == 0;
}

Status check_address(const void* address, std::int64_t bytes, const char* name) {
  if (is_multiple(address, bytes)) return {};
  return refuse(Code::kUnsupported, "%s lies at %p, wanted a multiple of %lld bytes", name, address,
                number(bytes));
}

// What the copy engine and 16-byte stores need of a tensor's address and strides.
Status check_tensor(const ConstTensor& t, const TensorSizes& sizes, const char* name, bool written) {
  if (sizes.s == 0) return {};
  if (t.data == nullptr) return refuse(Code::kInvalidArgument, "%s is null, wanted a tensor", name);
  if (const Status address = check_address(t.data, kAlignment, name); !address.ok()) return address;
  const struct {
    std::int64_t size, stride;
    const char* dim;
  } dims[] = {{sizes.b, t.stride_b, "batch"}, {sizes.h, t.stride_h, "head"}, {sizes.s, t.stride_s, "row"}};
  for (const auto& [size, stride, dim] : dims) {
    if (size == 1) continue;
    if (stride < 0 || stride >= kMostStride || stride * 2 % kAlignment != 0) {
      return refuse(Code::kUnsupported,
                    "%s has a %s stride of %lld elements, wanted a multiple of 8 from 0 to 2^39", name, dim,
                    number(stride));
    }
    if (written && stride < sizes.d) {
      return refuse(Code::kInvalidArgument, "%s has a %s stride of %lld elements, wanted at least %lld", name,
                    dim, number(stride), number(sizes.d));
    }
  }
  return {};
}

Status check_input(const ConstTensor& t, const TensorSizes& sizes, const char* name) {
  return check_tensor(t, sizes, name, false);
}
Status check_output(const MutableTensor& t, const TensorSizes& sizes, const char* name) {
  return check_tensor({t.data, t.stride_b, t.stride_h, t.stride_s}, sizes, name, true);
}
Status check_wanted_output(const MutableTensor& t, const TensorSizes& sizes, const char* name) {
  return t.data == nullptr ? Status{} : check_output(t, sizes, name);
}

Status check_floats(const float* values, const char* name) {
  return check_address(values, sizeof(float), name);
}

Status check_sinks(const Problem& p, const void* sinks) {
  return check_address(sinks, p.sink_dtype == DType::kFp32 ? 4 : 2, "sinks");
}

Status check_residual(const std::int8_t* residual) {
  return check_address(residual, kAlignment, "the residual");
}

Status check_workspace(const void* workspace, std::size_t seen, std::size_t wanted) {
  return first_of(
      {check_workspace_size(workspace, seen, wanted), check_address(workspace, kAlignment, "the workspace")});
}

}  // namespace

Status supports(const Problem& p) {
  if (p.dtype != DType::kBf16 && p.dtype != DType::kFp16)
    return refuse(Code::kUnsupported, "fp32 on the GPU, wanted bf16 or fp16");
  if (p.d != 64 && p.d != 128)
    return refuse(Code::kUnsupported, "head dim %lld on the GPU, wanted 64 or 128", number(p.d));
  if (p.sq < 0 || p.sk < 0 || p.sq >= kMostRows || p.sk >= kMostRows) {
    return refuse(Code::kInvalidArgument, "sq %lld, sk %lld: wanted 0 to 2^31 - 1 each", number(p.sq),
                  number(p.sk));
  }
  const Status common = check_sizes_and_masks(p);
  if (!common.ok()) return common;
  if (p.b >= kMostRows || p.hq >= kMostRows || p.b * p.hq >= kMostRows / 64 ||
      p.b * p.hq * ((p.sq + p.sk) / 64 + p.documents + 2) >= kMostRows) {
    return refuse(Code::kUnsupported, "b %lld, hq %lld, sq %lld, sk %lld: wanted under 2^31 tiles of 64 rows",
                  number(p.b), number(p.hq), number(p.sq), number(p.sk));
  }
  return {};
}

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
  if (const Status problem = supports(p); !problem.ok()) return problem;
  const TensorSizes of_rows{p.b, p.hq, p.sq, p.d}, of_keys{p.b, p.hkv, p.sk, p.d};
  return first_of({check_input(f.q, of_rows, "q"), check_input(f.k, of_keys, "k"),
                   check_input(f.v, of_keys, "v"), check_sinks(p, f.sinks),
                   check_output(f.out, of_rows, "out"), check_floats(f.lse, "lse"),
                   check_residual(f.residual),
                   check_workspace(f.workspace, f.workspace_bytes, forward_workspace_bytes(p)), available()});
}

Status check_backward(const BackwardParams& w) {
  const Problem& p = w.problem;
  if (const Status problem = supports(p); !problem.ok()) return problem;
  if (w.lse == nullptr && p.sq > 0)
    return refuse(Code::kInvalidArgument, "lse is null, wanted the forward's");
  const TensorSizes of_rows{p.b, p.hq, p.sq, p.d}, of_keys{p.b, p.hkv, p.sk, p.d};
  return first_of(
      {check_input(w.q, of_rows, "q"), check_input(w.k, of_keys, "k"), check_input(w.v, of_keys, "v"),
       check_sinks(p, w.sinks), check_input(w.out, of_rows, "out"), check_floats(w.lse, "lse"),
       check_residual(w.residual), check_input(w.dout, of_rows, "dout"), check_floats(w.dlse, "dlse"),
       check_wanted_output(w.dq, of_rows, "dq"), check_wanted_output(w.dk, of_keys, "dk"),
       check_wanted_output(w.dv, of_keys, "dv"), check_floats(w.dsinks, "dsinks"),
       check_workspace(w.workspace, w.workspace_bytes, backward_workspace_bytes(p)), available()});
}

}  // namespace sink_attention::cuda
