// SPDX-License-Identifier: Apache-2.0
// The installed tool works outside the source tree, with its gates, suites and captures.
#include "tests/tools/command.hpp"

namespace sinkscope::tools {
namespace {

class Install : public CommandTest {};

TEST_F(Install, WorksOutsideTheTree) {
  const Ran installed = shell("cmake --install " SINKSCOPE_BUILD_DIR " --prefix " + path("prefix"));
  ASSERT_EQ(installed.code, 0) << installed.out << installed.err;
  const std::string tool = "cd " + path("") + " && prefix/bin/sinkscope ";
  const Ran suites = shell(tool + "list suites");
  EXPECT_NE(suites.out.find("field"), std::string::npos) << suites.out << suites.err;
  const Ran compared = shell(tool + "compare --suite smoke --quiet -o smoke.h5");
  EXPECT_EQ(compared.code, 0) << compared.out << compared.err;
  EXPECT_EQ(shell(tool + "gate smoke.h5 --gate default --quiet").code, 0);
  EXPECT_TRUE(fs::exists(folder_ / "prefix/share/man/man1/sinkscope.1"));
  EXPECT_TRUE(fs::exists(folder_ / "prefix/share/bash-completion/completions/sinkscope.bash"));
#ifdef SINKSCOPE_WITH_TORCH
  EXPECT_EQ(shell(tool + "compare 'sq64 hq2' --paths eager,sink_kernel --require eager").code, 0);
  const Ran trained = shell(tool + "spike small_text --quiet --steps 1 --runs healthy");
  EXPECT_EQ(trained.code, 0) << trained.out << trained.err;
#endif
}

}  // namespace
}  // namespace sinkscope::tools
