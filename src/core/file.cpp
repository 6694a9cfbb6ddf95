// SPDX-License-Identifier: Apache-2.0
#include "src/core/file.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <sys/stat.h>
#include <unistd.h>

#include "fmt/format.h"

#include "src/core/error.hpp"

namespace sinkscope {
namespace {

// What the signal handler removes: it may touch only fixed memory and async-signal-safe calls.
struct PendingSlot {
  std::atomic<bool> taken = false;  // by a PendingFile
  std::atomic<bool> armed = false;  // its path is complete: the handler may remove it
  std::array<char, 4096> path{};
};
std::array<PendingSlot, 16> pending_slots;

// What an interrupt says; fixed memory for the same reason.
std::array<char, 512> interrupt_words = {"nothing was written"};

int take_slot(const std::string& path) {
  if (path.size() >= PendingSlot{}.path.size()) {
    throw InputError(fmt::format("the output path has {} characters, wanted less than {}", path.size(),
                                 PendingSlot{}.path.size()));
  }
  for (std::size_t i = 0; i < pending_slots.size(); ++i) {
    if (pending_slots[i].taken.exchange(true)) continue;
    std::memcpy(pending_slots[i].path.data(), path.c_str(), path.size() + 1);
    pending_slots[i].armed = true;
    return static_cast<int>(i);
  }
  throw std::logic_error("more than 16 files are being written at once");
}

void give_back_slot(int slot) {
  pending_slots[static_cast<std::size_t>(slot)].armed = false;
  pending_slots[static_cast<std::size_t>(slot)].taken = false;
}

void remove_pending_and_exit(int signal) {
  for (PendingSlot& slot : pending_slots) {
    if (slot.armed) ::unlink(slot.path.data());
  }
  if (signal == SIGINT) {
    const char* const sentence[] = {"\nsinkscope: interrupted, ", interrupt_words.data(), "\n"};
    for (const char* words : sentence) {
      [[maybe_unused]] const auto written = ::write(STDERR_FILENO, words, std::strlen(words));
    }
  }
  ::_exit(128 + signal);
}

void sync_path(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC);
  if (fd < 0) return;
  const int failed = ::fsync(fd);
  const int reason = errno;
  ::close(fd);
  // Some file systems cannot sync a folder; that is not the file's loss.
  if (failed != 0 && reason != EINVAL) {
    throw EnvironmentError(fmt::format("{} could not be written to disk: {}", path, std::strerror(reason)));
  }
}

}  // namespace

PendingFile::PendingFile(std::string final_path, bool overwrite)
    : final_path_(std::move(final_path)),
      temporary_path_(fmt::format("{}.partial-{}", final_path_, ::getpid())) {
  std::error_code ignored;
  if (std::filesystem::is_directory(final_path_, ignored)) {
    throw InputError(fmt::format("{} is a folder, wanted a file name", final_path_));
  }
  const bool exists = std::filesystem::exists(final_path_, ignored);
  if (exists && !std::filesystem::is_regular_file(final_path_, ignored)) {
    throw InputError(fmt::format("{} is a device or a pipe, wanted a regular file", final_path_));
  }
  if (exists && !overwrite) {
    throw InputError(fmt::format("{} exists already; --overwrite replaces it", final_path_));
  }
  slot_ = take_slot(temporary_path_);
  const int fd = ::open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) {
    const int reason = errno;
    give_back_slot(slot_);
    throw EnvironmentError(fmt::format("{} cannot be written: {}", final_path_, std::strerror(reason)));
  }
  ::close(fd);
}

PendingFile::~PendingFile() {
  if (!committed_) ::unlink(temporary_path_.c_str());
  give_back_slot(slot_);
}

void PendingFile::commit() {
  put_in_place(temporary_path_, final_path_);
  committed_ = true;
}

void put_in_place(const std::string& from, const std::string& to) {
  sync_path(from, O_RDONLY);
  if (::rename(from.c_str(), to.c_str()) != 0)
    throw EnvironmentError(fmt::format("{} could not be put in place: {}", to, std::strerror(errno)));
  const std::string folder = std::filesystem::path(to).parent_path().string();
  sync_path(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
}

void write_file(const std::string& path, std::string_view text, bool overwrite) {
  PendingFile file(path, overwrite);
  std::ofstream stream(file.temporary_path(), std::ios::binary);
  stream.write(text.data(), static_cast<std::streamsize>(text.size()));
  stream.close();
  if (!stream) throw EnvironmentError(fmt::format("{} could not be written: {}", path, std::strerror(errno)));
  file.commit();
}

std::string read_file(const std::string& path, std::string_view what) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw InputError(fmt::format("{} {} is a folder, wanted a file", what, path));
  }
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw InputError(fmt::format("{} {} cannot be read: {}", what, path, std::strerror(errno)));
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

void say_when_interrupted(std::string_view words) {
  const std::size_t length = std::min(words.size(), interrupt_words.size() - 1);
  std::memcpy(interrupt_words.data(), words.data(), length);
  interrupt_words[length] = '\0';
}

void install_interrupt_handler() {
  struct sigaction action {};
  action.sa_handler = remove_pending_and_exit;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
}

}  // namespace sinkscope
