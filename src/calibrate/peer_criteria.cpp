// SPDX-License-Identifier: Apache-2.0
#include "src/calibrate/peer_criteria.hpp"

#include <algorithm>
#include <cmath>

namespace sinkscope {
namespace {

constexpr double kLeastCosine = 0.99;
constexpr double kTimesBaseline = 2;

struct Tolerance {
  double relative, absolute;
};
constexpr Tolerance kAllclose = {1e-5, 1e-8};

Tolerance assert_close_default(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return {1.6e-2, 1e-5};
    case DType::kFp16:
      return {1e-3, 1e-5};
    default:
      return {1.3e-6, 1e-5};
  }
}

double rounded(DType dtype, double x) {
  switch (dtype) {
    case DType::kBf16:
      return widen_bf16(round_to_bf16(x));
    case DType::kFp16:
      return widen_fp16(round_to_fp16(x));
    default:
      return static_cast<double>(static_cast<float>(x));
  }
}

// |a - b|, 0 where both are the same infinity, NaN where they cannot be compared.
double distance(double a, double b) {
  return a == b ? 0 : std::fabs(a - b);
}

bool is_close(const std::vector<double>& got, const std::vector<double>& ref, Tolerance tolerance) {
  for (std::size_t i = 0; i < ref.size(); ++i) {
    const double allowed =
        std::isfinite(ref[i]) ? tolerance.absolute + tolerance.relative * std::fabs(ref[i]) : 0;
    if (!(distance(got[i], ref[i]) <= allowed)) return false;
  }
  return true;
}

double largest_distance(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = distance(a[i], b[i]);
    if (std::isnan(d)) return d;
    largest = std::max(largest, d);
  }
  return largest;
}

bool passes_flash_attention(TensorName name, DType dtype, const std::vector<double>& got,
                            const std::vector<double>& ref, const std::vector<double>& eager) {
  const double baseline = kTimesBaseline * largest_distance(eager, ref);
  if (name == TensorName::kDsinks) {
    for (std::size_t i = 0; i < ref.size(); ++i) {
      const auto wide = static_cast<float>(std::fabs(ref[i]));
      const double last_place = std::nextafter(wide, INFINITY) - wide;
      if (!(distance(got[i], ref[i]) <= baseline + 2 * last_place)) return false;
    }
    return true;
  }
  double arithmetic = 0;  // what any arithmetic on the reference loses
  for (const double r : ref) {
    if (std::isfinite(r))
      arithmetic = std::max(arithmetic, std::fabs(rounded(dtype, rounded(dtype, r + 0.3) - 0.3) - r));
  }
  return largest_distance(got, ref) <= baseline + 2 * arithmetic;
}

// Over the elements that are finite on both sides; those that are not must be alike.
bool passes_cosine(const std::vector<double>& got, const std::vector<double>& ref) {
  double cross = 0, got2 = 0, ref2 = 0;
  for (std::size_t i = 0; i < ref.size(); ++i) {
    if (!std::isfinite(got[i]) || !std::isfinite(ref[i])) {
      if (got[i] != ref[i]) return false;
      continue;
    }
    cross += got[i] * ref[i];
    got2 += got[i] * got[i];
    ref2 += ref[i] * ref[i];
  }
  if (got2 == 0 && ref2 == 0) return true;
  return cross >= kLeastCosine * std::sqrt(got2) * std::sqrt(ref2) && got2 > 0;
}

}  // namespace

void PeerVerdicts::operator|=(const PeerVerdicts& other) {
  flash_attention = flash_attention || other.flash_attention;
  allclose = allclose || other.allclose;
  assert_close = assert_close || other.assert_close;
  cosine = cosine || other.cosine;
}

PeerVerdicts judge_by_peers(const Case& c, const Truth& truth, TensorName name, const Tensor& got,
                            const Tensor& eager) {
  const bool in_fp32 = name == TensorName::kLse || name == TensorName::kDsinks;
  const DType dtype = in_fp32 ? DType::kFp32 : c.problem.shape.dtype;
  std::vector<double> ref = values_of(truth.value, name);
  for (double& r : ref) r = rounded(dtype, r);
  if (!got.given()) return {name != TensorName::kLse && eager.given(), true, true, true};
  const std::vector<double> values = got.widened();
  PeerVerdicts failed;
  if (name != TensorName::kLse && eager.given())
    failed.flash_attention = !passes_flash_attention(name, dtype, values, ref, eager.widened());
  failed.allclose = !is_close(values, ref, kAllclose);
  failed.assert_close = !is_close(values, ref, assert_close_default(dtype));
  failed.cosine = !passes_cosine(values, ref);
  return failed;
}

}  // namespace sinkscope
