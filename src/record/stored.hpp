// SPDX-License-Identifier: Apache-2.0
// Problems of a record whose tensors are stored (compare --save-tensors), to be looked at again without running anything.
#pragma once

#include <string>
#include <vector>

#include "src/inputs/path.hpp"
#include "src/record/record.hpp"

namespace sinkscope {

struct StoredCase {
  Case c;  // the inputs that were measured, bit for bit
  // What was compared then: each gives its stored outputs, under its own name and backend, and runs nothing. One that did
  // not run is unsupported, with the reason.
  std::vector<Path> paths;
};

// Throws InputError where a problem of the record, or a path that was measured there, has no stored tensors.
void require_tensors(const std::string& path, const Record& record);

// Reads one problem's tensors: `result` is among the cases of read_record(path). Throws InputError where some are missing,
// have another shape than was measured, or are not the inputs whose sha256 the record has.
StoredCase read_stored_case(const std::string& path, const CaseResult& result);

}  // namespace sinkscope
