// SPDX-License-Identifier: Apache-2.0
// Is what was timed right? A fast wrong kernel has no time.
#pragma once

#include <map>
#include <string>

#include "src/gate/gate.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {

// Some key/value heads of every batch entry with the query heads that read them: a problem of its own, whose truth is
// cheap where that of all heads is not.
struct KvHeads {
  std::int64_t first = 0;
  std::int64_t count = 1;
};
Case part_of(const Case& c, KvHeads heads);
Outputs part_of(const Outputs& outputs, const AttentionShape& shape, KvHeads heads);

// Relative L2 error of any head above which an observed path is wrong. What the gate judges is held to the gate.
inline constexpr double kWrongRelL2 = 0.1;

struct OutputCheck {
  std::string wrong;                     // what is wrong, or empty
  std::map<std::string, double> rel_l2;  // of each tensor's worst head
};

// Every output of these heads against their truth; the others are looked through for elements that are not finite,
// which those never written are. `judged`: by the gate's limits.
OutputCheck check_outputs(const Outputs& outputs, const Case& c, KvHeads heads, const Truth& truth,
                          const Gate& gate, bool judged, int threads);

}  // namespace sinkscope
