// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/explain/cause.hpp"

namespace sinkscope {
namespace {

std::vector<Cause> facts() {
  return {
      {"head_zeroed", "the head is zero everywhere",
       "write every head: look at the grid and at masks of heads", "a grid one head short"},
      {"rows_missing", "rows were not written", "write every tile, the last and partial one too",
       "a last block that is left out"},
      {"rows_twice", "rows are twice as large", "add each tile once", "a tile that two blocks add"},
      {"stale", "the output is that of other inputs", "give every call outputs of its own, and wait for them",
       "a buffer that is used again before it was read"},
  };
}

std::vector<Cause> joined(std::initializer_list<std::vector<Cause>> groups) {
  std::vector<Cause> all;
  for (const std::vector<Cause>& group : groups) all.insert(all.end(), group.begin(), group.end());
  return all;
}

}  // namespace

Hypothesis hypothesis(const Cause& cause,
                      std::function<bool(HeadFunction&, std::int64_t, std::int64_t)> change) {
  return {&cause,
          [&cause, change = std::move(change)](HeadFunction& f, std::int64_t batch, std::int64_t head) {
            HeadFunction changed = f;
            changed.key += fmt::format("+{}", cause.id);
            if (!change(changed, batch, head)) return false;
            f = std::move(changed);
            return true;
          }};
}

const std::vector<Cause>& all_causes() {
  static const std::vector<Cause> kCauses =
      joined({sink_causes(), mask_causes(), value_causes(), backward_causes()});
  return kCauses;
}

const std::vector<Cause>& fact_causes() {
  static const std::vector<Cause> kFacts = facts();
  return kFacts;
}

const Cause& find_cause(std::string_view id) {
  for (const std::vector<Cause>* causes : {&all_causes(), &fact_causes()}) {
    const auto found =
        std::find_if(causes->begin(), causes->end(), [&](const Cause& c) { return c.id == id; });
    if (found != causes->end()) return *found;
  }
  throw InputError(fmt::format("cause '{}' is not known (sinkscope list causes)", id));
}

}  // namespace sinkscope
