// SPDX-License-Identifier: Apache-2.0
// The entry points of the fp32 engine for the including translation unit's instruction set.
#pragma once

#include "kernels/cpu/backward.inl"
#include "kernels/cpu/engine_fp32.inl"
#include "kernels/cpu/forward.inl"

namespace sink_attention::cpu {
namespace {

void forward_fp32(const ForwardItem& item) {
  switch (item.dtype) {
    case DType::kBf16:
      return forward_rows<Fp32Engine, DType::kBf16>(item);
    case DType::kFp16:
      return forward_rows<Fp32Engine, DType::kFp16>(item);
    case DType::kFp32:
      return forward_rows<Fp32Engine, DType::kFp32>(item);
  }
}

void backward_fp32(const BackwardItem& item) {
  switch (item.dtype) {
    case DType::kBf16:
      return backward_rows<Fp32Engine, DType::kBf16>(item);
    case DType::kFp16:
      return backward_rows<Fp32Engine, DType::kFp16>(item);
    case DType::kFp32:
      return backward_rows<Fp32Engine, DType::kFp32>(item);
  }
}

constexpr IsaTable fp32_table(const char* name) {
  return {name,
          ForwardScratch<Fp32Engine>::bytes,
          BackwardScratch<Fp32Engine>::bytes,
          forward_fp32,
          backward_fp32,
          store_rows};
}

}  // namespace
}  // namespace sink_attention::cpu
