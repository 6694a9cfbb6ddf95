// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "fmt/format.h"

#include "src/core/parallel.hpp"
#include "src/diff/diff.hpp"

namespace sinkscope {
namespace {

constexpr std::int64_t kBiasBlocks = 16;
constexpr std::int64_t kLeastBiasRows = 64;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One head of a tensor as [rows, columns], and what its errors are measured in.
struct HeadData {
  std::span<const double> got, ref, sigma;
  std::int64_t rows, columns;
  double unit_roundoff;     // of the judged format: z
  DType stored;             // of got: last places, subnormals
  bool sigma_adds_storage;  // dsinks in 16 bits: one more rounding than the truth's sigma holds
};

// The heads of a tensor: [b, h, rows, columns].
struct Extents {
  std::int64_t b, h, rows, columns;
};

Extents extents_of(const AttentionShape& s, TensorName name) {
  switch (name) {
    case TensorName::kOut:
    case TensorName::kDq:
      return {s.b, s.hq, s.sq, s.d};
    case TensorName::kLse:
      return {s.b, s.hq, s.sq, 1};
    case TensorName::kDk:
    case TensorName::kDv:
      return {s.b, s.hkv, s.sk, s.d};
    case TensorName::kDsinks:
      break;
  }
  return {1, s.hq, 1, 1};
}

// 0 finite, 1 NaN, 2 inf, 3 -inf.
int class_of(double x) {
  return std::isfinite(x) ? 0 : std::isnan(x) ? 1 : x > 0 ? 2 : 3;
}

struct FormatShape {
  int significand_bits;
  int min_exponent;
};
FormatShape shape_of(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return {7, -126};
    case DType::kFp16:
      return {10, -14};
    case DType::kFp32:
      return {23, -126};
    default:
      return {52, -1022};
  }
}

// The distance between neighbours of the format at `ref`.
double last_place(double ref, FormatShape format) {
  const int exponent = static_cast<int>(std::bit_cast<std::uint64_t>(ref) >> 52 & 0x7FF) - 1023;
  return std::ldexp(1.0, std::max(exponent, format.min_exponent) - format.significand_bits);
}

// Sums of a row or a block that are added to the head's at its end, so that long sums lose little.
struct RowSums {
  double z2 = 0, err2 = 0, ref2 = 0, got2 = 0, cross = 0, abs = 0, err_ref = 0, scale_ref = 0;
  std::int64_t finite = 0;

  void operator+=(const RowSums& other) {
    z2 += other.z2;
    err2 += other.err2;
    ref2 += other.ref2;
    got2 += other.got2;
    cross += other.cross;
    abs += other.abs;
    err_ref += other.err_ref;
    scale_ref += other.scale_ref;
    finite += other.finite;
  }
};

class HeadMeasurement {
 public:
  explicit HeadMeasurement(const HeadData& data) : data_(data), format_(shape_of(data.stored)) {
    least_normal_ = std::ldexp(1.0, format_.min_exponent);
  }

  HeadMetrics run() {
    m_.all_zero = true;
    m_.ref_all_zero = true;
    for (std::int64_t row = 0; row < data_.rows; ++row) add_row(row);
    const bool got_is_zero = m_.all_zero;
    m_.all_zero = got_is_zero && !m_.ref_all_zero;
    summarise();
    return m_;
  }

 private:
  void add_row(std::int64_t row) {
    RowSums sums;
    for (std::int64_t column = 0; column < data_.columns; ++column) add_element(row, column, sums);
    total_ += sums;
    const double rms = sums.finite > 0 ? std::sqrt(sums.z2 / static_cast<double>(sums.finite)) : 0;
    if (!(rms <= m_.z_row) || m_.z_row_at < 0) {
      m_.z_row = rms;
      m_.z_row_at = row;
    }
    const auto block = static_cast<std::size_t>(row * kBiasBlocks / data_.rows);
    bias_blocks_[block] += sums.err_ref;
    const auto bin = static_cast<std::size_t>(row * static_cast<std::int64_t>(kProfileBins) / data_.rows);
    profile_[bin] += sums;
  }

  void add_element(std::int64_t row, std::int64_t column, RowSums& sums) {
    const auto i = static_cast<std::size_t>(row * data_.columns + column);
    const double got = data_.got[i];
    const double ref = data_.ref[i];
    if (got != 0) m_.all_zero = false;
    if (ref != 0) m_.ref_all_zero = false;
    if (!std::isfinite(got) || !std::isfinite(ref)) {
      if (!std::isfinite(got)) ++m_.nonfinite;
      if (class_of(got) != class_of(ref) && m_.nonfinite_mismatch++ == 0) m_.nonfinite_at = {row, column};
      return;
    }
    const double err = got - ref;
    const double magnitude = std::fabs(err);
    if (got == 0 && ref != 0) ++m_.zeros;
    if (got != 0 && std::fabs(got) < least_normal_) ++m_.subnormals;
    const double scale = scale_of(i, ref);
    const double z = magnitude == 0 ? 0 : magnitude / scale;
    if (!(z <= m_.z_max) || m_.z_max_at.row < 0) {
      m_.z_max = z;
      m_.z_max_at = {row, column};
    }
    if (magnitude > m_.max_abs || m_.max_abs_at.row < 0) {
      m_.max_abs = magnitude;
      m_.max_abs_at = {row, column};
    }
    ulps_.push_back(magnitude / last_place(ref, format_));
    sums.z2 += z * z;
    sums.err2 += err * err;
    sums.ref2 += ref * ref;
    sums.got2 += got * got;
    sums.cross += got * ref;
    sums.abs += magnitude;
    sums.err_ref += err * ref;
    sums.scale_ref += scale * std::fabs(ref);
    ++sums.finite;
  }

  // One unit of z at element i.
  double scale_of(std::size_t i, double ref) const {
    const double scale = data_.unit_roundoff * data_.sigma[i];
    return data_.sigma_adds_storage ? std::hypot(scale, unit_roundoff(data_.stored) * ref) : scale;
  }

  void summarise() {
    const auto count = static_cast<double>(total_.finite);
    if (total_.finite > 0) {
      m_.z_rms = std::sqrt(total_.z2 / count);
      m_.mean_abs = total_.abs / count;
    }
    m_.norm_got = std::sqrt(total_.got2);
    m_.norm_ref = std::sqrt(total_.ref2);
    const double norm_err = std::sqrt(total_.err2);
    if (m_.norm_ref > 0) {
      m_.rel_l2 = norm_err / m_.norm_ref;
      m_.gain = total_.cross / total_.ref2;
      m_.cosine = m_.norm_got > 0 ? total_.cross / (m_.norm_got * m_.norm_ref) : 0;
      m_.bias = total_.err_ref / total_.ref2;
    } else if (norm_err > 0) {
      m_.rel_l2 = kInfinity;
      m_.gain = kInfinity;
      m_.cosine = 0;
    }
    summarise_bias();
    for (std::size_t bin = 0; bin < kProfileBins; ++bin) {
      const auto n = static_cast<double>(profile_[bin].finite);
      m_.profile[bin] = n > 0 ? static_cast<float>(std::sqrt(profile_[bin].z2 / n)) : 0.0F;
    }
    m_.ulp_p50 = percentile(0.5);
    m_.ulp_p99 = percentile(0.99);
    m_.ulp_max = percentile(1);
  }

  // Batch means over blocks of positions: elements of a row share the error of its Delta and are not
  // independent, but blocks nearly are.
  void summarise_bias() {
    if (total_.err_ref != 0) m_.bias_z = std::fabs(total_.err_ref) / total_.scale_ref;
    if (data_.rows < kLeastBiasRows) return;
    double mean = 0;
    for (const double y : bias_blocks_) mean += y / kBiasBlocks;
    double squares = 0;
    for (const double y : bias_blocks_) squares += (y - mean) * (y - mean);
    const double deviation = std::sqrt(squares / (kBiasBlocks - 1));
    if (mean != 0) m_.bias_t = mean / (deviation / std::sqrt(static_cast<double>(kBiasBlocks)));
  }

  double percentile(double share) {
    if (ulps_.empty()) return 0;
    const auto at = static_cast<std::ptrdiff_t>(std::ceil(share * static_cast<double>(ulps_.size()))) - 1;
    const auto nth = ulps_.begin() + std::max<std::ptrdiff_t>(0, at);
    std::nth_element(ulps_.begin(), nth, ulps_.end());
    return *nth;
  }

  const HeadData& data_;
  FormatShape format_;
  double least_normal_;
  HeadMetrics m_;
  RowSums total_;
  std::array<double, kBiasBlocks> bias_blocks_{};
  std::array<RowSums, kProfileBins> profile_{};
  std::vector<double> ulps_;
};

// flash-attention's own criterion: twice the largest error of the 16-bit baseline, plus twice what plain
// arithmetic on the reference loses (its tests' ref + 0.3 - 0.3 - ref, in the judged format).
double flash_attention_allowance(const HeadData& data, double eager_max_abs) {
  const auto rounded = [&](double x) {
    switch (data.stored) {
      case DType::kBf16:
        return widen_bf16(round_to_bf16(x));
      case DType::kFp16:
        return widen_fp16(round_to_fp16(x));
      default:
        return static_cast<double>(static_cast<float>(x));
    }
  };
  double arithmetic = 0;
  for (const double ref : data.ref) {
    if (!std::isfinite(ref)) continue;
    const double exact = rounded(ref);
    arithmetic = std::max(arithmetic, std::fabs(rounded(rounded(exact + 0.3) - 0.3) - exact));
  }
  return 2 * eager_max_abs + 2 * arithmetic;
}

}  // namespace

std::int64_t rows_of_head(const AttentionShape& shape, TensorName name) {
  return extents_of(shape, name).rows;
}

std::vector<std::int64_t> real_rows(const AttentionShape& shape, TensorName name) {
  return name == TensorName::kDsinks ? std::vector<std::int64_t>() : shape.seqlens;
}

TensorMetrics measure(const Case& c, const Truth& truth, TensorName name, const Tensor& got,
                      const TensorMetrics* eager, int threads) {
  const AttentionShape& s = c.problem.shape;
  const Extents extents = extents_of(s, name);
  const std::vector<double>& refs = values_of(truth.value, name);
  const std::vector<double>& sigmas = values_of(truth.sigma, name);
  const std::int64_t per_head = extents.rows * extents.columns;
  const std::int64_t heads = extents.b * extents.h;
  if (got.shape() != output_shape(s, name) || refs.size() != static_cast<std::size_t>(got.size()) ||
      sigmas.size() != refs.size()) {
    throw std::invalid_argument(fmt::format("{} has shape {}, wanted {} (the truth has {} elements)",
                                            text(name), shape_text(got.shape()),
                                            shape_text(output_shape(s, name)), refs.size()));
  }

  TensorMetrics metrics{name, extents.b, extents.h, extents.rows, {}, real_rows(s, name)};
  metrics.heads.resize(static_cast<std::size_t>(heads));
  const bool stored_in_16_bits = got.dtype() == DType::kBf16 || got.dtype() == DType::kFp16;
  parallel_for(heads, threads, [&](std::int64_t head) {
    const std::int64_t rows = metrics.rows_of(static_cast<std::size_t>(head));
    std::vector<double> values(static_cast<std::size_t>(rows * extents.columns));
    got.widen(head * per_head, values);
    const auto first = static_cast<std::size_t>(head * per_head);
    HeadData data;
    data.got = values;
    data.ref = std::span(refs).subspan(first, values.size());
    data.sigma = std::span(sigmas).subspan(first, values.size());
    data.rows = rows;
    data.columns = extents.columns;
    data.unit_roundoff = unit_roundoff(name == TensorName::kLse ? DType::kFp32 : s.dtype);
    data.stored = got.dtype();
    data.sigma_adds_storage = name == TensorName::kDsinks && stored_in_16_bits;
    HeadMetrics& m = metrics.heads[static_cast<std::size_t>(head)];
    m = HeadMeasurement(data).run();
    if (eager == nullptr) return;
    const HeadMetrics& baseline = eager->heads.at(static_cast<std::size_t>(head));
    const double allowance = flash_attention_allowance(data, baseline.max_abs);
    m.fa_ratio = m.max_abs == 0 ? 0 : m.max_abs / allowance;
    m.eager_ratio = m.rel_l2 == 0 ? 0 : m.rel_l2 / baseline.rel_l2;
  });
  return metrics;
}

void mark_unrepeatable(TensorMetrics& metrics, const Tensor& first, const Tensor& again) {
  const std::size_t bytes = metrics.heads.empty() ? 0 : first.bytes() / metrics.heads.size();
  const bool comparable = again.dtype() == first.dtype() && again.shape() == first.shape();
  for (std::size_t head = 0; head < metrics.heads.size(); ++head) {
    const std::byte* a = first.data() + head * bytes;
    if (!comparable || !std::equal(a, a + bytes, again.data() + head * bytes))
      metrics.heads[head].repeatable = false;
  }
}

}  // namespace sinkscope
