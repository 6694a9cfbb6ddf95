// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "src/diff/diff.hpp"

namespace sinkscope {
namespace {

// Reads and writes one member, through another one where it sits inside a Position.
template <auto Member>
MetricInfo member(std::string_view name, std::string_view unit, std::string_view meaning) {
  return {name, unit, meaning, [](const HeadMetrics& m) { return static_cast<double>(m.*Member); },
          [](HeadMetrics& m, double value) {
            m.*Member = static_cast<std::remove_reference_t<decltype(m.*Member)>>(value);
          }};
}

template <auto Member, auto Inner>
MetricInfo member(std::string_view name, std::string_view unit, std::string_view meaning) {
  return {name, unit, meaning, [](const HeadMetrics& m) { return static_cast<double>(m.*Member.*Inner); },
          [](HeadMetrics& m, double value) { m.*Member.*Inner = static_cast<std::int64_t>(value); }};
}

using H = HeadMetrics;
using P = Position;

const std::array kMetrics = {
    member<&H::z_rms>("z_rms", "u sigma",
                      "root mean square of the error over what rounding makes unavoidable"),
    member<&H::z_row>("z_row", "u sigma", "the worst row's root mean square of z"),
    member<&H::z_row_at>("z_row_at", "position", "the row of z_row"),
    member<&H::z_max>("z_max", "u sigma", "the largest z of an element"),
    member<&H::z_max_at, &P::row>("z_max_row", "position", "the row of z_max"),
    member<&H::z_max_at, &P::column>("z_max_column", "column", "the column of z_max"),
    member<&H::max_abs>("max_abs", "1", "largest absolute error"),
    member<&H::max_abs_at, &P::row>("max_abs_row", "position", "the row of max_abs"),
    member<&H::max_abs_at, &P::column>("max_abs_column", "column", "the column of max_abs"),
    member<&H::mean_abs>("mean_abs", "1", "mean absolute error"),
    member<&H::rel_l2>("rel_l2", "1", "norm of the error over the norm of the truth"),
    member<&H::gain>("gain", "1", "projection <got, ref> / <ref, ref>"),
    member<&H::cosine>("cosine", "1", "cosine between got and ref"),
    member<&H::norm_got>("norm_got", "1", "Euclidean norm of got"),
    member<&H::norm_ref>("norm_ref", "1", "Euclidean norm of the truth"),
    member<&H::ulp_p50>("ulp_p50", "ulp", "median error in units of the last place"),
    member<&H::ulp_p99>("ulp_p99", "ulp", "99th percentile of the error in units of the last place"),
    member<&H::ulp_max>("ulp_max", "ulp", "largest error in units of the last place"),
    member<&H::zeros>("zeros", "count", "zeros where the truth is not zero"),
    member<&H::subnormals>("subnormals", "count", "subnormal elements"),
    member<&H::nonfinite>("nonfinite", "count", "NaN and infinite elements"),
    member<&H::nonfinite_mismatch>("nonfinite_mismatch", "count",
                                   "elements that are NaN, inf or -inf where the truth is something else"),
    member<&H::nonfinite_at, &P::row>("nonfinite_row", "position", "the row of the first such element"),
    member<&H::nonfinite_at, &P::column>("nonfinite_column", "column",
                                         "the column of the first such element"),
    member<&H::bias>("bias", "1", "signed bias: sum err ref / sum ref^2"),
    member<&H::bias_t>("bias_t", "t",
                       "the bias over its spread between 16 blocks of positions (15 degrees of freedom)"),
    member<&H::bias_z>("bias_z", "u sigma",
                       "|sum err ref| / sum (u sigma |ref|): the mean z along the truth"),
    member<&H::fa_ratio>("fa_ratio", "1", "largest error over what flash-attention's own tests allow"),
    member<&H::eager_ratio>("eager_ratio", "1", "rel_l2 over that of eager"),
    member<&H::all_zero>("all_zero", "0 or 1", "zero everywhere while the truth is not"),
    member<&H::ref_all_zero>("ref_all_zero", "0 or 1", "the truth is zero everywhere"),
    member<&H::repeatable>("repeatable", "0 or 1", "the same bits in every repeat"),
};

}  // namespace

std::span<const MetricInfo> all_metrics() {
  return kMetrics;
}

}  // namespace sinkscope
