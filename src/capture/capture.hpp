// SPDX-License-Identifier: Apache-2.0
// Captures: real attention inputs, and outputs that some implementation recorded for them, as safetensors.
#pragma once

#include <string>
#include <vector>

#include "src/inputs/case.hpp"

namespace sinkscope {

// Reads a capture into a case named after the file's stem. `problem.capture` is the path; its grads
// and residual tokens are kept, and layout=bshd; a capture that is laid out so stays so. Throws InputError.
Case load_capture(const Problem& problem);

// Writes inputs (and recorded outputs) as a capture that load_capture reads back bit for bit.
void save_capture(const std::string& path, const Case& c, bool overwrite);

// Loads the capture or generates the inputs. An empty name leaves the capture's own.
Case make_case(const Problem& problem, std::string name, int threads = 0);

// A file, or every *.safetensors directly in a folder, sorted by name. Throws InputError when there is none.
std::vector<std::string> captures_at(const std::string& path);

}  // namespace sinkscope
