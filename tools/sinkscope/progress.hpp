// SPDX-License-Identifier: Apache-2.0
// Progress on stderr: one line that is overwritten on a terminal, a line now and then elsewhere.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

namespace sinkscope::cli {

class ProgressLine {
 public:
  ProgressLine(bool enabled, std::size_t cases);
  ~ProgressLine();
  void start_case(std::size_t index) { index_ = index; }
  void update(std::string_view name, std::string_view stage, double share);
  void clear();

 private:
  bool enabled_;
  bool terminal_;
  bool shown_ = false;
  std::size_t cases_;
  std::size_t index_ = 0;
  std::chrono::steady_clock::time_point last_;
};

// Are colours wanted on stdout? `choice` is auto, always or never; NO_COLOR counts with auto.
bool wants_colour(const std::string& choice);
int terminal_width();

}  // namespace sinkscope::cli
