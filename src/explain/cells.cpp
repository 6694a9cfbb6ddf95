// SPDX-License-Identifier: Apache-2.0
#include "src/explain/cells.hpp"

#include <cmath>

namespace sinkscope {
namespace {

constexpr double kSlack = 2;  // on single rows and elements

struct Documents {
  std::vector<std::int64_t> cu_q, cu_k;
  std::size_t count() const { return cu_q.size() - 1; }
};

Documents documents_of(const AttentionShape& s) {
  if (s.docs.empty()) return {{0, s.sq}, {0, s.sk}};
  return {s.cu_q(), s.cu_k()};
}

int class_of(double x) {
  return std::isfinite(x) ? 0 : std::isnan(x) ? 1 : x > 0 ? 2 : 3;
}

double z_of(const Cell& cell, const Prediction& prediction, double unit, std::size_t i) {
  const double got = cell.got[i], ref = prediction.value[i];
  if (class_of(got) != class_of(ref)) return INFINITY;
  if (got == ref || !std::isfinite(ref)) return 0;
  double scale = unit * prediction.sigma[i];
  const bool in_16_bits = cell.stored == DType::kBf16 || cell.stored == DType::kFp16;
  if (cell.tensor == TensorName::kDsinks && in_16_bits)
    scale = std::hypot(scale, unit_roundoff(cell.stored) * ref);
  return std::fabs(got - ref) / scale;
}

// The rms and the largest z of one row.
struct RowFit {
  double z2 = 0, z_max = 0, err2 = 0, norm2 = 0;
};

RowFit fit_row(const Cell& cell, const Prediction& prediction, double unit, std::int64_t row) {
  RowFit fit;
  for (std::int64_t column = 0; column < cell.columns; ++column) {
    const auto i = static_cast<std::size_t>(row * cell.columns + column);
    const double z = z_of(cell, prediction, unit, i);
    const double err = cell.got[i] - prediction.value[i];
    if (std::isfinite(err)) fit.err2 += err * err;
    fit.norm2 += prediction.value[i] * prediction.value[i];
    fit.z2 += z * z;
    if (!(z <= fit.z_max)) fit.z_max = z;
  }
  return fit;
}

bool is_within(const RowFit& fit, const Cell& cell, const Limits& limits) {
  return fit.z_max <= limits.z_max && std::sqrt(fit.z2 / static_cast<double>(cell.columns)) <= limits.z_row;
}

void add_cells_of_heads(const Case& c, const Tensor& tensor, TensorName name, std::vector<Cell>& cells) {
  const AttentionShape& s = c.problem.shape;
  const Documents documents = documents_of(s);
  const bool of_keys = is_of_keys(name);
  const std::vector<std::int64_t>& cu = of_keys ? documents.cu_k : documents.cu_q;
  const std::int64_t heads = of_keys ? s.hkv : s.hq, rows = of_keys ? s.sk : s.sq;
  const std::int64_t columns = name == TensorName::kLse ? 1 : s.d;
  for (std::int64_t head = 0; head < s.b * heads; ++head) {
    for (std::size_t document = 0; document < documents.count(); ++document) {
      Cell cell{name, head / heads, head % heads, static_cast<std::int64_t>(document)};
      cell.rows = {cu[document], std::min(cu[document + 1], s.real_rows(cell.batch, rows))};
      cell.columns = columns;
      cell.stored = tensor.dtype();
      if (cell.rows.size() == 0) continue;
      cell.got.resize(static_cast<std::size_t>(cell.rows.size() * columns));
      tensor.widen((head * rows + cell.rows.first) * columns, cell.got);
      cells.push_back(std::move(cell));
    }
  }
}

std::vector<double> part_of(const std::vector<double>& values, const Cell& cell) {
  return {values.begin() + cell.rows.first * cell.columns, values.begin() + cell.rows.end * cell.columns};
}

Prediction predict_keys(const Case& c, const Cell& cell, const FunctionOf& function, const ResultOf& result) {
  const AttentionShape& s = c.problem.shape;
  const bool is_dk = cell.tensor == TensorName::kDk;
  Prediction p;
  p.value.assign(cell.got.size(), 0);
  p.sigma.assign(cell.got.size(), 0);
  for (std::int64_t head = 0; head < s.hq; ++head) {
    if (function(cell.batch, head, cell.document)->kv_head != cell.head) continue;
    const HeadResult& r = result(cell.batch, head, cell.document);
    const std::vector<double>& value = is_dk ? r.dk : r.dv;
    const std::vector<double>& sigma2 = is_dk ? r.sigma2_dk : r.sigma2_dv;
    const auto first = static_cast<std::size_t>(cell.rows.first * cell.columns);
    for (std::size_t i = 0; i < p.value.size(); ++i) {
      p.value[i] += value[first + i];
      p.sigma[i] += sigma2[first + i];
    }
  }
  const double underflow = underflow_unit(s.dtype) / unit_roundoff(s.dtype);
  for (std::size_t i = 0; i < p.value.size(); ++i)
    p.sigma[i] = std::sqrt(p.sigma[i] + p.value[i] * p.value[i] + underflow * underflow);
  return p;
}

Prediction predict_dsink(const Case& c, const Cell& cell, const FunctionOf& function,
                         const ResultOf& result) {
  const AttentionShape& s = c.problem.shape;
  const Documents documents = documents_of(s);
  const double u = unit_roundoff(s.dtype), rho = 0x1p-24 / u, tiny = 0x1p-126 / u;
  double sum = 0, sigma2 = 0;
  for (std::int64_t batch = 0; batch < s.b; ++batch) {
    for (std::int64_t head = 0; head < s.hq; ++head) {
      for (std::size_t document = 0; document < documents.count(); ++document) {
        const auto number = static_cast<std::int64_t>(document);
        if (function(batch, head, number)->sink_of != cell.head) continue;
        const HeadResult& r = result(batch, head, number);
        for (auto row = static_cast<std::size_t>(documents.cu_q[document]);
             row < static_cast<std::size_t>(documents.cu_q[document + 1]); ++row) {
          sum += r.dsink[row];
          sigma2 += r.sigma2_dsink[row];
        }
      }
    }
  }
  return {{sum}, {std::sqrt(sigma2 + rho * rho * sum * sum + tiny * tiny)}};
}

}  // namespace

CellLimits limits_of(const Gate& gate, const Case& c, TensorName tensor) {
  const FormatLimits& format = gate.formats.at(c.problem.shape.dtype);
  if (tensor == TensorName::kLse) return {format.lse, unit_roundoff(DType::kFp32)};
  const double u = unit_roundoff(c.problem.shape.dtype);
  if (tensor == TensorName::kDsinks) return {{INFINITY, INFINITY, format.dsinks}, u};
  return {format.tensors, u};
}

Fit fit(const Cell& cell, const Prediction& prediction, const CellLimits& limits, std::optional<Range> rows,
        const std::vector<bool>& err_rows) {
  const Range counted = rows.value_or(Range{0, cell.rows.size()});
  Fit total;
  bool within = true;
  for (std::int64_t row = counted.first; row < counted.end; ++row) {
    const RowFit one = fit_row(cell, prediction, limits.unit_roundoff, row);
    within = within && is_within(one, cell, limits.limits);
    total.z2 += one.z2;
    total.norm2 += one.norm2;
    if (err_rows.empty() || err_rows[static_cast<std::size_t>(row)]) total.err2 += one.err2;
    total.z_row = std::max(total.z_row, std::sqrt(one.z2 / static_cast<double>(cell.columns)));
    total.z_max = std::max(total.z_max, one.z_max);
  }
  const double count = static_cast<double>(std::max<std::int64_t>(1, counted.size() * cell.columns));
  total.z_rms = std::sqrt(total.z2 / count);
  const bool is_small = total.z_rms <= z_rms_limit(limits.limits, counted.size());
  total.fits = within && is_small;
  total.nearly =
      is_small && total.z_row <= kSlack * limits.limits.z_row && total.z_max <= kSlack * limits.limits.z_max;
  return total;
}

std::vector<bool> row_fits(const Cell& cell, const Prediction& prediction, const CellLimits& limits) {
  std::vector<bool> fits(static_cast<std::size_t>(cell.rows.size()));
  for (std::size_t row = 0; row < fits.size(); ++row) {
    const RowFit one = fit_row(cell, prediction, limits.unit_roundoff, static_cast<std::int64_t>(row));
    fits[row] = is_within(one, cell, limits.limits);
  }
  return fits;
}

std::vector<Cell> cells_of(const Case& c, const Outputs& outputs) {
  std::vector<Cell> cells;
  for (const TensorName name : kTensorNames) {
    const Tensor& tensor = outputs[name];
    if (!tensor.given()) continue;
    if (name != TensorName::kDsinks) {
      add_cells_of_heads(c, tensor, name, cells);
      continue;
    }
    for (std::int64_t head = 0; head < c.problem.shape.hq; ++head) {
      Cell cell{name, 0, head, 0, {0, 1}, 1, {tensor.at(head)}, tensor.dtype()};
      cells.push_back(std::move(cell));
    }
  }
  return cells;
}

Prediction predict(const Case& c, const Cell& cell, const FunctionOf& function, const ResultOf& result) {
  if (is_of_keys(cell.tensor)) return predict_keys(c, cell, function, result);
  if (cell.tensor == TensorName::kDsinks) return predict_dsink(c, cell, function, result);
  const HeadResult& r = result(cell.batch, cell.head, cell.document);
  switch (cell.tensor) {
    case TensorName::kLse:
      return {part_of(r.lse, cell), part_of(r.sigma_lse, cell)};
    case TensorName::kDq:
      return {part_of(r.dq, cell), part_of(r.sigma_dq, cell)};
    default:
      return {part_of(r.out, cell), part_of(r.sigma_out, cell)};
  }
}

}  // namespace sinkscope
