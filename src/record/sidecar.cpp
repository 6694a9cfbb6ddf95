// SPDX-License-Identifier: Apache-2.0
#include "src/record/sidecar.hpp"

#include <cmath>

namespace sinkscope {

nlohmann::json json_of(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  return number;
}

nlohmann::json json_of(const VerdictRow& row) {
  return {{"problem", row.problem},
          {"path", row.path},
          {"tensor", row.tensor},
          {"verdict", text(row.verdict)},
          {"judged", row.judged},
          {"metric", row.metric},
          {"batch", row.batch},
          {"head", row.head},
          {"row", row.row},
          {"column", row.column},
          {"value", json_of(row.value)},
          {"limit", json_of(row.limit)},
          {"failed_heads", row.failed_heads},
          {"reason", row.reason},
          {"repro", row.repro}};
}

}  // namespace sinkscope
