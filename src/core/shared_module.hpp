// SPDX-License-Identifier: Apache-2.0
// Shared modules of the tool, loaded when first needed, so that the command starts fast and works without what they link.
#pragma once

#include <string>

namespace sinkscope {

struct SharedModule {
  void* library = nullptr;  // for dlsym; stays loaded
  std::string path;         // the file
  std::string problem;      // dlopen's words where a file is there and does not load
};

// The file named by `chosen` where that is not null; else `file` beside the executable, in ../lib/sinkscope, and one folder above
// the executable, where the command is for a test program. Neither library nor problem: there is no such file.
SharedModule load_shared_module(const std::string& file, const char* chosen = nullptr);

}  // namespace sinkscope
