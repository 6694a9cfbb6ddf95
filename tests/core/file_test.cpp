// SPDX-License-Identifier: Apache-2.0
// Files appear whole or not at all, whatever ends the writing.
#include "src/core/file.hpp"

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gtest/gtest.h"

#include "src/core/error.hpp"
#include "tests/temporary_folder.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

class Files : public TemporaryFolder {
 protected:
  bool folder_is_empty() const { return fs::is_empty(folder_); }
};

TEST_F(Files, AppearWhenCommitted) {
  {
    PendingFile file(path("a"), false);
    std::ofstream(file.temporary_path()) << "whole";
    EXPECT_FALSE(fs::exists(path("a")));
    file.commit();
  }

  EXPECT_EQ(read_file(path("a"), "file"), "whole");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
}

TEST_F(Files, LeaveNothingWhenNotCommitted) {
  {
    PendingFile file(path("a"), false);
    std::ofstream(file.temporary_path()) << "half";
    EXPECT_FALSE(folder_is_empty());
  }

  EXPECT_TRUE(folder_is_empty());
}

TEST_F(Files, AreReplacedOnlyWhenAsked) {
  write_file(path("a"), "old", false);

  EXPECT_THROW(write_file(path("a"), "new", false), InputError);
  EXPECT_EQ(read_file(path("a"), "file"), "old");
  write_file(path("a"), "new", true);
  EXPECT_EQ(read_file(path("a"), "file"), "new");
}

TEST_F(Files, RefuseFoldersDevicesAndMissingFolders) {
  EXPECT_THROW(PendingFile(folder_.string(), true), InputError);
  EXPECT_THROW(PendingFile("/dev/null", true), InputError);
  EXPECT_THROW(PendingFile(path("missing/a"), true), EnvironmentError);
  EXPECT_THROW(PendingFile(std::string(5000, 'x'), true), InputError);
}

TEST_F(Files, RefuseAnUnwritableFolder) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);

  EXPECT_THROW(write_file(path("a"), "text", false), EnvironmentError);

  fs::permissions(folder_, fs::perms::owner_all);
}

TEST_F(Files, AFullDiskLeavesTheOldFile) {
  write_file(path("a"), "old", false);
  const pid_t child = ::fork();
  if (child == 0) {
    // A limit on the file size stands for the full disk.
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {1024, 1024};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      write_file(path("a"), std::string(100'000, 'x'), true);
    } catch (const EnvironmentError&) {
      ::_exit(7);
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);

  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(read_file(path("a"), "file"), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
}

TEST_F(Files, AreReadWholeOrRefusedWithTheReason) {
  std::ofstream(path("empty"));

  EXPECT_EQ(read_file(path("empty"), "file"), "");
  EXPECT_THROW(read_file(folder_.string(), "suite"), InputError);
  try {
    read_file(path("missing"), "suite");
    FAIL() << "a missing file was read";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("suite " + path("missing")), std::string::npos) << error.what();
  }
}

class Interrupted : public Files, public testing::WithParamInterface<int> {};

TEST_P(Interrupted, FilesAreRemovedAndTheExitCodeSaysSo) {
  const pid_t child = ::fork();
  if (child == 0) {
    install_interrupt_handler();
    const PendingFile first(path("a"), false);
    const PendingFile second(path("b"), false);
    ::raise(GetParam());
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);

  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 128 + GetParam());
  EXPECT_TRUE(folder_is_empty());
}

INSTANTIATE_TEST_SUITE_P(Signals, Interrupted, testing::Values(SIGINT, SIGTERM, SIGHUP));

}  // namespace
}  // namespace sinkscope
