// SPDX-License-Identifier: Apache-2.0
// The errors that reach a person, one type per exit code. Their text is one sentence: the value seen, the
// value wanted.
#pragma once

#include <stdexcept>
#include <string>

namespace sinkscope {

// Exit codes of the command. Where several apply, the first of 5, 3, 2, 1, 4, 0 that does.
enum class ExitCode : int {
  kPassed = 0,
  kFailed = 1,
  kUsage = 2,
  kEnvironment = 3,
  kInconclusive = 4,
  kInternal = 5,
  kInterrupted = 130,
};

// The input is wrong: a malformed file, an impossible problem, an option that does not exist. Exit code 2.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The machine is wrong: a missing library, a full disk, nothing left to judge. Exit code 3.
struct EnvironmentError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace sinkscope
