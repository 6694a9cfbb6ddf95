// SPDX-License-Identifier: Apache-2.0
// What a path's errors mean for training, for people and for machines.
#pragma once

#include <string>

#include "nlohmann/json_fwd.hpp"

#include "src/record/record.hpp"

namespace sinkscope {

// A paragraph below the findings of a path: the sentence, who accounts for the change, what to do; with `verbose` one
// line per head of every tensor. Empty where the path gave no gradient.
std::string render_training(const Training& training, bool verbose);

// The list `training`, one object per path of a case that gave a gradient. Schema in src/report/README.md.
nlohmann::json training_json(const std::vector<CaseResult>& results);

}  // namespace sinkscope
