// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/tensor_map.hpp"

#include <cstring>
#include <cuda_runtime_api.h>

#include "kernels/check.h"

namespace sink_attention::cuda {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                            CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, without linking the driver's library.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function)
                                                                      : nullptr;
}

// A thread that made no CUDA call before has no context, and the driver's functions, other than the runtime's, do
// not give it one.
bool take_context() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess && cudaSetDevice(device) == cudaSuccess;
}

}  // namespace

Status make_tensor_map(CUtensorMap& map, const ConstTensor& tensor, const TensorSizes& sizes, DType dtype,
                       const TensorBox& tile, const char* name) {
  std::memset(&map, 0, sizeof map);
  if (sizes.s == 0) return {};  // a tensor without rows is never read
  static const Encode encode = find_encode();
  if (encode == nullptr)
    return refuse(Status::Code::kDeviceError,
                  "the driver has no cuTensorMapEncodeTiled, wanted CUDA 12 or later");

  // A dimension of size 1 is never stepped over: any valid stride does for it.
  const cuuint64_t row_bytes = static_cast<cuuint64_t>(sizes.d) * 2;
  const auto stride_bytes = [&](std::int64_t size, std::int64_t stride) {
    return size == 1 ? row_bytes : static_cast<cuuint64_t>(stride) * 2;
  };
  const cuuint64_t dims[4] = {static_cast<cuuint64_t>(sizes.d), static_cast<cuuint64_t>(sizes.s),
                              static_cast<cuuint64_t>(sizes.h), static_cast<cuuint64_t>(sizes.b)};
  const cuuint64_t strides[3] = {stride_bytes(sizes.s, tensor.stride_s),
                                 stride_bytes(sizes.h, tensor.stride_h),
                                 stride_bytes(sizes.b, tensor.stride_b)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(tile.rows), static_cast<cuuint32_t>(tile.heads), 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const auto encoded = [&] {
    return encode(
        &map, dtype == DType::kBf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
        const_cast<void*>(tensor.data), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = encoded();
  if (result == CUDA_ERROR_INVALID_CONTEXT && take_context()) result = encoded();
  if (result == CUDA_SUCCESS) return {};
  return refuse(Status::Code::kUnsupported,
                "%s with strides %lld, %lld, %lld: the copy engine does not take it (CUresult %d)", name,
                static_cast<long long>(tensor.stride_b), static_cast<long long>(tensor.stride_h),
                static_cast<long long>(tensor.stride_s), static_cast<int>(result));
}

}  // namespace sink_attention::cuda
