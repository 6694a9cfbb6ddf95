// SPDX-License-Identifier: Apache-2.0
#include "tools/sinkscope/progress.hpp"

#include <cstdio>
#include <cstdlib>
#include <sys/ioctl.h>
#include <unistd.h>

#include "fmt/format.h"

namespace sinkscope::cli {
namespace {

constexpr std::chrono::seconds kQuietTime(10);  // between lines where stderr is not a terminal

}  // namespace

ProgressLine::ProgressLine(bool enabled, std::size_t cases)
    : enabled_(enabled),
      terminal_(isatty(STDERR_FILENO) == 1),
      cases_(cases),
      last_(std::chrono::steady_clock::now()) {}

ProgressLine::~ProgressLine() {
  clear();
}

void ProgressLine::update(std::string_view name, std::string_view stage, double share) {
  if (!enabled_) return;
  const double done = (static_cast<double>(index_) + share) / static_cast<double>(cases_);
  const std::string text =
      fmt::format("[{:3.0f}%] {}/{} {}: {}", 100 * done, index_ + 1, cases_, name, stage);
  if (terminal_) {
    fmt::print(stderr, "\r\x1b[2K{}", text.substr(0, static_cast<std::size_t>(terminal_width() - 1)));
    std::fflush(stderr);
    shown_ = true;
    return;
  }
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < kQuietTime) return;
  last_ = now;
  fmt::print(stderr, "{}\n", text);
}

void ProgressLine::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\x1b[2K");
  std::fflush(stderr);
  shown_ = false;
}

bool wants_colour(const std::string& choice) {
  if (choice != "auto") return choice == "always";
  const char* no_colour = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  const bool dumb = terminal != nullptr && std::string_view(terminal) == "dumb";
  return isatty(STDOUT_FILENO) == 1 && (no_colour == nullptr || *no_colour == '\0') && !dumb;
}

int terminal_width() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20) return size.ws_col;
  return 100;
}

}  // namespace sinkscope::cli
