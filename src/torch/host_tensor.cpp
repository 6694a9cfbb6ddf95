// SPDX-License-Identifier: Apache-2.0
#include "src/torch/host_tensor.hpp"

#include <cstring>

namespace sinkscope::torch_paths {

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return at::kBFloat16;
    case DType::kFp16:
      return at::kHalf;
    case DType::kFp32:
      return at::kFloat;
    case DType::kFp64:
      return at::kDouble;
    case DType::kInt32:
      return at::kInt;
    case DType::kInt64:
      return at::kLong;
  }
  return at::kFloat;
}

Tensor from_torch(const at::Tensor& tensor, DType dtype) {
  const at::Tensor host = tensor.detach().to(at::kCPU, scalar_type(dtype)).contiguous();
  Tensor result(dtype, host.sizes().vec());
  std::memcpy(result.data(), host.const_data_ptr(), result.bytes());
  return result;
}

at::Tensor view_of(const Tensor& tensor) {
  if (!tensor.given()) return {};
  auto* const data = const_cast<std::byte*>(tensor.data());  // from_blob wants a writable pointer
  return at::from_blob(data, tensor.shape(), at::TensorOptions().dtype(scalar_type(tensor.dtype())));
}

}  // namespace sinkscope::torch_paths
