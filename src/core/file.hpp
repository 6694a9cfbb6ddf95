// SPDX-License-Identifier: Apache-2.0
// Files that appear whole or not at all.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace sinkscope {

// A file under a temporary name beside its final one. commit() syncs it and renames it into place; until then
// the destructor removes it, and so does an interrupting signal (install_interrupt_handler).
class PendingFile {
 public:
  // Throws InputError when `final_path` exists and `overwrite` is false, EnvironmentError when its folder is
  // not writable.
  PendingFile(std::string final_path, bool overwrite);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  const std::string& temporary_path() const { return temporary_path_; }
  const std::string& final_path() const { return final_path_; }

  // fsync, rename, fsync the folder. Throws EnvironmentError with the system's reason.
  void commit();

 private:
  std::string final_path_;
  std::string temporary_path_;
  int slot_ = -1;  // in the table that the signal handler removes
  bool committed_ = false;
};

// fsync, rename, fsync the folder: what a command that keeps its unfinished file does when it is finished. Throws
// EnvironmentError with the system's reason.
void put_in_place(const std::string& from, const std::string& to);

// Writes `text` to `path` through a PendingFile.
void write_file(const std::string& path, std::string_view text, bool overwrite);

// The whole file. Throws InputError with the system's reason; `what` names it in the message ("suite",
// "gate").
std::string read_file(const std::string& path, std::string_view what);

// SIGINT, SIGTERM and SIGHUP remove every pending file and end the process with 130 (SIGINT) or 128 + signal.
void install_interrupt_handler();

// What SIGINT then says after "interrupted, ", in place of "nothing was written".
void say_when_interrupted(std::string_view words);

}  // namespace sinkscope
