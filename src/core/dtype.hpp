// SPDX-License-Identifier: Apache-2.0
// Number formats: names, sizes, unit roundoffs, and exact conversions to and from double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace sinkscope {

enum class DType { kBf16, kFp16, kFp32, kFp64, kInt32, kInt64 };

// Bytes of one element.
std::size_t size_of(DType dtype);

// "bf16", "fp16", "fp32", "fp64", "i32", "i64": as in a problem line.
std::string_view name_of(DType dtype);
std::optional<DType> dtype_from_name(std::string_view name);

// u, the unit roundoff: bf16 2^-8, fp16 2^-11, fp32 2^-24, fp64 2^-53.
double unit_roundoff(DType dtype);

// eta, the absolute error of an underflowing result: fp16 2^-25, else 2^-126 (fp64: 2^-1022).
double underflow_unit(DType dtype);

// Exact widening.
double widen_bf16(std::uint16_t bits);
double widen_fp16(std::uint16_t bits);

// Round to nearest even from double directly (no double rounding through fp32); NaN stays NaN, overflow gives
// inf.
std::uint16_t round_to_bf16(double value);
std::uint16_t round_to_fp16(double value);

}  // namespace sinkscope
