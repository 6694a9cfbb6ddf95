// SPDX-License-Identifier: Apache-2.0
#include "tools/sinkscope/lab_scenario.hpp"

#include "tools/sinkscope/data_files.hpp"

namespace sinkscope::cli {

Scenario scenario_for(const std::string& name, bool cuda, int threads) {
  Scenario scenario = read_scenario(find_scenario(name));
  scenario.lab.cuda = cuda;
  scenario.lab.threads = threads;
  if (!scenario.lab.sorting) scenario.lab.text.path = find_data_path(scenario.lab.text.path);
  return scenario;
}

}  // namespace sinkscope::cli
