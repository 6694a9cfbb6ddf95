// SPDX-License-Identifier: Apache-2.0
// Where a record comes from: the tool, the machine, the command.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace sinkscope {

// Name and value in the order of printing: version, commit, utc, command_line, cpu, cores, threads, gpu,
// driver, cuda, torch, hdf5. An absent thing is "none".
using RunInfo = std::vector<std::pair<std::string, std::string>>;

RunInfo collect_run_info(const std::string& command_line, int threads);

}  // namespace sinkscope
