// SPDX-License-Identifier: Apache-2.0
#include "src/explain/facts.hpp"

#include <algorithm>
#include <cmath>

#include "fmt/format.h"

namespace sinkscope {
namespace {

// From the first to the last row that does not fit.
Range wrong_rows(const std::vector<bool>& fits) {
  Range rows{static_cast<std::int64_t>(fits.size()), 0};
  for (std::int64_t row = 0; row < static_cast<std::int64_t>(fits.size()); ++row) {
    if (fits[static_cast<std::size_t>(row)]) continue;
    rows.first = std::min(rows.first, row);
    rows.end = row + 1;
  }
  return rows;
}

// Not written: zeros, or what is not a number.
bool is_blank(const Cell& cell, Range rows) {
  const auto first = cell.got.begin() + rows.first * cell.columns,
             end = cell.got.begin() + rows.end * cell.columns;
  return std::all_of(first, end, [](double x) { return x == 0; }) ||
         std::all_of(first, end, [](double x) { return std::isnan(x); });
}

// The base, with the wrong rows as they are.
Prediction with_blank(const Cell& cell, const Prediction& base, Range rows) {
  Prediction expected = base;
  std::copy(cell.got.begin() + rows.first * cell.columns, cell.got.begin() + rows.end * cell.columns,
            expected.value.begin() + rows.first * cell.columns);
  return expected;
}

Prediction doubled(const Cell& cell, const Prediction& base, Range rows) {
  Prediction expected = base;
  for (auto i = static_cast<std::size_t>(rows.first * cell.columns);
       i < static_cast<std::size_t>(rows.end * cell.columns); ++i) {
    expected.value[i] *= 2;
    expected.sigma[i] *= 2;
  }
  return expected;
}

}  // namespace

std::optional<Fact> find_fact(const Cell& cell, const Prediction& base, const CellLimits& limits,
                              const std::function<std::string()>& holder) {
  const Range rows = wrong_rows(row_fits(cell, base, limits));
  if (rows.size() <= 0 || cell.tensor == TensorName::kDsinks)
    return std::nullopt;  // one number shows nothing
  if (is_blank(cell, {0, cell.rows.size()}))
    return Fact{"head_zeroed", {0, cell.rows.size()}, "", with_blank(cell, base, {0, cell.rows.size()})};
  if (is_blank(cell, rows)) return Fact{"rows_missing", rows, "", with_blank(cell, base, rows)};
  Prediction twice = doubled(cell, base, rows);
  if (fit(cell, twice, limits).fits) return Fact{"rows_twice", rows, "", std::move(twice)};
  const std::string same = holder();
  if (same.empty()) return std::nullopt;
  return Fact{"stale", {0, cell.rows.size()}, "holds " + same, {cell.got, base.sigma}};
}

}  // namespace sinkscope
