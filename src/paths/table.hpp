// SPDX-License-Identifier: Apache-2.0
// The explicit table of paths, and how a path is found by its name.
#pragma once

#include <string_view>
#include <vector>

#include "src/inputs/path.hpp"

namespace sinkscope {

// Every computed path, in the order of the table of src/paths/README.md. Paths whose library could not be loaded
// are there too: their `unsupported` says why.
const std::vector<Path>& all_paths();

// A computed path, `recorded.NAME` of this case, `fault:NAME:PATH` or `fault:NAME@KV:PATH` (the mistake in the group of
// key/value head KV alone). Throws InputError listing the known names.
Path find_path(std::string_view name, const Case& c);

}  // namespace sinkscope
