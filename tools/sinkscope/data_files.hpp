// SPDX-License-Identifier: Apache-2.0
// The gates and suites that come with the tool: found beside an installed command or in the source tree of a
// built one.
#pragma once

#include <string>
#include <vector>

namespace sinkscope::cli {

// `name` as a file if there is one, else folder/name+extension among the shipped files. Throws InputError
// that lists what there is.
std::string find_data_file(const std::string& name, const std::string& folder, const std::string& extension,
                           const char* what);

// Names (without extension) of the shipped files of a folder, sorted.
std::vector<std::string> data_file_names(const std::string& folder, const std::string& extension);

inline std::string find_gate(const std::string& name) {
  return find_data_file(name, "reports/gates", ".toml", "gate");
}
inline std::string find_suite(const std::string& name) {
  return find_data_file(name, "datasets/suites", ".txt", "suite");
}
inline std::string find_scenario(const std::string& name) {
  return find_data_file(name, "datasets/scenarios", ".toml", "scenario");
}
inline std::vector<std::string> scenario_names() {
  return data_file_names("datasets/scenarios", ".toml");
}
inline std::string find_spike_gate(const std::string& name) {
  return find_data_file(name, "reports/gates/spike", ".toml", "spike gate");
}

// `path` where it is a file or folder, else that path among the shipped files. Throws InputError.
std::string find_data_path(const std::string& path);

}  // namespace sinkscope::cli
