// SPDX-License-Identifier: Apache-2.0
// One fault on one case: can it be seen, who catches it, and what does explain say of it?
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "src/calibrate/peer_criteria.hpp"
#include "src/diff/diff.hpp"
#include "src/explain/finding.hpp"
#include "src/faults/fault.hpp"
#include "src/gate/gate.hpp"
#include "src/inputs/path.hpp"

namespace sinkscope {

// What explain made of a fault. kInPart: named, but not with the scope that it has, or something is left.
enum class Naming { kRight, kInPart, kUnexplained, kWrong };

struct FaultTrial {
  bool planted = false;  // false: the case cannot show it
  bool visible = false;  // a head that differs from the healthy one has z_rms or z_max over visible_bounds()
  bool caught = false;   // by the gate
  PeerVerdicts peers;
  Naming naming = Naming::kUnexplained;  // of what is caught
  bool withheld = false;                 // was it also explained without its cause and their family?
  bool withheld_named = false;      // a mistake is named although its cause and their family are withheld
  std::string said, said_withheld;  // what explain said, in short
};

// A head can be seen to be wrong over these. z_rms is 1.26 for out, dq, dk and dv in 16 bits, which is 1.2 times the
// default gate's limit; in fp32, whose healthy heads reach more, 1.2 times its limit. z_max is the gate's limit.
struct VisibleBounds {
  double z_rms, z_max;
};
VisibleBounds visible_bounds(const Gate& gate, DType dtype, TensorName tensor);

// What all trials of a case share.
struct FaultCase {
  Case c;
  Truth truth;
  Path healthy;
  Outputs right;  // what the healthy path gives
  Outputs eager;  // the baseline of flash-attention's criterion; not given where eager cannot run
  std::optional<std::int64_t> kv_head;  // plant in this group alone
};

// Runs the truth, the healthy path and eager. Throws InputError for NaN or infinite inputs, and what the healthy path
// throws.
FaultCase prepare_fault_case(Case c, std::optional<std::int64_t> kv_head, int threads);

// Of the healthy path itself: `planted` is true, `naming` is kRight where nothing is named.
FaultTrial try_healthy(const FaultCase& fault_case, const Gate& gate);
// `withhold`: explain it once more without its cause and that cause's family, which takes the longest search.
FaultTrial try_fault(const FaultCase& fault_case, const Gate& gate, const Fault& fault, bool withhold);

}  // namespace sinkscope
