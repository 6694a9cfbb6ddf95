// SPDX-License-Identifier: Apache-2.0
// Cells: the pieces of a path's outputs that are explained one by one, and how well a prediction fits one.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "src/explain/head_function.hpp"
#include "src/gate/gate.hpp"

namespace sinkscope {

// One document of one head of one tensor (of dsinks: one head, over all batches and documents).
struct Cell {
  TensorName tensor = TensorName::kOut;
  std::int64_t batch = 0, head = 0, document = 0;
  Range rows;  // of the head: query rows, for dk and dv keys
  std::int64_t columns = 1;
  std::vector<double> got;      // [rows, columns]
  DType stored = DType::kFp32;  // the format of got
};

// What a cell should be, and the sigma of each element.
struct Prediction {
  std::vector<double> value, sigma;
};

// z of a cell under a prediction, judged by the gate's limits; NaN does not fit.
struct Fit {
  bool fits = false;
  bool nearly = false;  // but for single rows and elements somewhat over the limits
  double z2 = 0;        // sum of squared z; infinite where the classes of non-finite elements differ
  double err2 = 0;      // sum of squared errors of finite elements, over the rows that were asked for
  double z_rms = 0, z_row = 0, z_max = 0;
};

struct CellLimits {
  Limits limits;
  double unit_roundoff = 0;  // of z
};
CellLimits limits_of(const Gate& gate, const Case& c, TensorName tensor);

// Only the rows of `rows` count (positions within the cell; default all). err2 is over the rows that are true in
// `err_rows`, or all where it is empty.
Fit fit(const Cell& cell, const Prediction& prediction, const CellLimits& limits,
        std::optional<Range> rows = std::nullopt, const std::vector<bool>& err_rows = {});

// For each row of the cell: does it fit?
std::vector<bool> row_fits(const Cell& cell, const Prediction& prediction, const CellLimits& limits);

// Every cell of the outputs that are given.
std::vector<Cell> cells_of(const Case& c, const Outputs& outputs);

// What a cell should be when query head `head` of `batch` in `document` computes what `result(batch, head, document)`
// holds, and `function` says of it.
using ResultOf =
    std::function<const HeadResult&(std::int64_t batch, std::int64_t head, std::int64_t document)>;
using FunctionOf = std::function<FunctionPtr(std::int64_t batch, std::int64_t head, std::int64_t document)>;
Prediction predict(const Case& c, const Cell& cell, const FunctionOf& function, const ResultOf& result);

}  // namespace sinkscope
