// SPDX-License-Identifier: Apache-2.0
// Verdicts as JSON lines beside an unfinished record: what a crash leaves behind.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

#include "src/gate/gate.hpp"

namespace sinkscope {

// One row as a JSON object; numbers that JSON lacks are the texts "nan", "inf", "-inf".
nlohmann::json json_of(const VerdictRow& row);
nlohmann::json json_of(double number);

}  // namespace sinkscope
