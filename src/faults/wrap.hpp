// SPDX-License-Identifier: Apache-2.0
// What all faults are made with; the groups that the table joins.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"

#include "src/faults/fault.hpp"

namespace sinkscope {

using Unsupported = std::function<std::optional<std::string>(const Case&)>;
using Run = std::function<PathRun(const Path& healthy, const Case& c, const PathOptions& options)>;

// A healthy path with a mistake around it, named fault:NAME:PATH.
inline Path wrap(const Path& healthy, const char* name, Unsupported invisible, Run run) {
  Path path = healthy;
  path.name = fmt::format("fault:{}:{}", name, healthy.name);
  path.unsupported = [healthy, invisible = std::move(invisible)](const Case& c) {
    std::optional<std::string> reason = healthy.unsupported(c);
    return reason ? reason : invisible(c);
  };
  // A bench times the healthy launches and is to find the mistake in what they left.
  if (healthy.prepare) {
    path.prepare = [healthy, run](const Case& c) {
      PreparedPath prepared = healthy.prepare(c);
      prepared.outputs = [healthy, run, c] { return run(healthy, c, {}).outputs; };
      return prepared;
    };
  }
  path.run = [healthy, run = std::move(run)](const Case& c, const PathOptions& options) {
    return run(healthy, c, options);
  };
  return path;
}

// Other inputs or another mask; other constants in the backward; outputs that are lost, doubled or old.
std::vector<Fault> input_faults();
std::vector<Fault> gradient_faults();
std::vector<Fault> output_faults();
std::vector<Fault> plain_faults();

// One of the faults that the calibration runs, made with what gradient_faults() are.
Path dlse_dropped(const Path& healthy);

}  // namespace sinkscope
