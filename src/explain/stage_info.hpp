// SPDX-License-Identifier: Apache-2.0
// The stages of attention that may round, by name.
#pragma once

#include <string_view>
#include <vector>

namespace sinkscope {

// Every stage: its id, a few words for it, what it says and what to do about it.
struct StageInfo {
  std::string_view id;
  std::string_view words, sentence, fix;
};
const std::vector<StageInfo>& all_stages();
const StageInfo& stage_info(std::string_view id);  // of all_stages()

}  // namespace sinkscope
