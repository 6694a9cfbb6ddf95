// SPDX-License-Identifier: Apache-2.0
// The diff engine: every statistic of one output against the truth, for every (batch, head).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "src/inputs/case.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {

// Where an element is within its head: the row (query position; key position for dk, dv) and the column in d.
struct Position {
  std::int64_t row = -1;
  std::int64_t column = -1;
};

// Rows of the error profile: the rms of z over this many equal ranges of positions.
inline constexpr std::size_t kProfileBins = 16;

// Statistics of one head of one tensor. err = got - ref; z = err / (u sigma), 0 where err = 0. Statistics of
// size go over the elements where both sides are finite.
struct HeadMetrics {
  double z_rms = 0;  // root mean square of z
  double z_row = 0;  // the worst row's rms of z
  std::int64_t z_row_at = -1;
  double z_max = 0;  // largest |z|
  Position z_max_at;
  double max_abs = 0;  // largest |err|
  Position max_abs_at;
  double mean_abs = 0;
  double rel_l2 = 0;  // |err|_2 / |ref|_2
  double gain = 1;    // projection <got, ref> / <ref, ref>
  double cosine = 1;
  double norm_got = 0;
  double norm_ref = 0;
  double ulp_p50 = 0, ulp_p99 = 0, ulp_max = 0;  // |err| in units of got's format at ref
  std::int64_t zeros = 0;                        // of got, where ref is not zero
  std::int64_t subnormals = 0;                   // of got
  std::int64_t nonfinite = 0;                    // of got
  std::int64_t nonfinite_mismatch = 0;  // elements whose NaN, +inf, -inf or finite class differs from ref's
  Position nonfinite_at;                // the first of them
  double bias = 0;                      // sum err ref / sum ref^2
  double bias_t = 0;  // batch-means t, 15 degrees of freedom; 0 where not tested (under 64 rows)
  double bias_z = 0;  // |sum err ref| / sum (u sigma |ref|): the mean z along the truth
  double fa_ratio =
      0;  // max |err| over flash-attention's allowance (2 max |eager err| + 2 max |ref + .3 - .3 - ref|)
  double eager_ratio = 0;     // rel_l2 over eager's rel_l2 (0 without an eager run)
  bool all_zero = false;      // got is zero everywhere while ref is not
  bool ref_all_zero = false;  // ref is zero everywhere: the head could hardly have failed
  bool repeatable = true;     // bitwise equal over the repeats
  std::array<float, kProfileBins> profile{};
};

// All heads of one tensor: heads[batch * h + head]; for dsinks b = 1 and each head is one number.
struct TensorMetrics {
  TensorName tensor = TensorName::kOut;
  std::int64_t b = 0;
  std::int64_t h = 0;
  std::int64_t rows = 0;  // of one head
  std::vector<HeadMetrics> heads;
  std::vector<std::int64_t> real_rows = {};  // of each batch entry, where some are padding; empty: all

  std::int64_t rows_of(std::size_t head) const {
    return real_rows.empty() ? rows : real_rows[head / static_cast<std::size_t>(h)];
  }
};

// What is known of a query head beside its errors, from the truth alone: heads [b * hq].
struct HeadFacts {
  std::int64_t b = 0;
  std::int64_t hq = 0;
  std::vector<double> p_sink_mean, p_sink_max;
  std::vector<double> predicted_gain;  // of a path without the sink: sum |O_i|^2 / (1 - p_i) / sum |O_i|^2
  std::vector<double> lse_min, lse_max;
  std::vector<double> entropy;  // mean over rows
};

// Measures one output, without rows of padding. `eager` may be null: the same tensor's metrics of the eager path, for the two ratios.
// The tensor must have the truth's shape. Throws std::invalid_argument otherwise.
TensorMetrics measure(const Case& c, const Truth& truth, TensorName name, const Tensor& got,
                      const TensorMetrics* eager = nullptr, int threads = 0);

// Rows of one head of a tensor, and how many of them are measured where some are padding (TensorMetrics::real_rows).
std::int64_t rows_of_head(const AttentionShape& shape, TensorName name);
std::vector<std::int64_t> real_rows(const AttentionShape& shape, TensorName name);

HeadFacts head_facts(const Case& c, const Truth& truth);

// Marks, in metrics of the first run, the heads whose bits differ in a later run of the same path.
void mark_unrepeatable(TensorMetrics& metrics, const Tensor& first, const Tensor& again);

// One line per statistic: how it is called in a record and in `list metrics`, how it is read out and put
// back. Together they hold every member but the profile.
struct MetricInfo {
  std::string_view name;
  std::string_view unit;
  std::string_view meaning;
  double (*value)(const HeadMetrics&);
  void (*assign)(HeadMetrics&, double);
};
std::span<const MetricInfo> all_metrics();

}  // namespace sinkscope
