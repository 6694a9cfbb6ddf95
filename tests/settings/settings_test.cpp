// SPDX-License-Identifier: Apache-2.0
// Settings are read strictly: every error names the key, what was seen and what was wanted.
#include "src/settings/settings.hpp"

#include <cmath>
#include <functional>

#include "gtest/gtest.h"

#include "src/core/error.hpp"

namespace sinkscope {
namespace {

Settings settings_of(const std::string& toml) {
  return Settings::parse(toml, "file x");
}

std::string error_of(const std::function<void()>& reading) {
  try {
    reading();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Settings, AreReadByTheirKeys) {
  Settings s = settings_of("n = 3\nx = 2\nyes = true\nname = 'a'\nlist = ['a', 'b']\n[t]\ny = inf\n");
  EXPECT_EQ(s.integer("n", 1, 3), 3);
  EXPECT_EQ(s.number("x", 0, 2), 2);
  EXPECT_TRUE(s.boolean("yes"));
  EXPECT_EQ(s.word("name"), "a");
  EXPECT_EQ(s.choice("name", {"a", "b"}), "a");
  EXPECT_EQ(s.words("list", "names"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(s.table("t").positive("y"), INFINITY);
  EXPECT_FALSE(s.has("other"));
  EXPECT_EQ(error_of([&] { s.done(); }), "no error");
}

TEST(Settings, TablesAreReadInOrder) {
  std::vector<Settings> runs = settings_of("[[run]]\nn = 1\n[[run]]\nn = 2\nm = 3\n").tables("run");
  ASSERT_EQ(runs.size(), 2U);
  EXPECT_EQ(runs[0].integer("n", 0, 9), 1);
  EXPECT_EQ(runs[1].integer("n", 0, 9), 2);
  EXPECT_EQ(error_of([&] { runs[1].done(); }), "file x: run[1].m is not known, wanted one of n");
  EXPECT_TRUE(runs[1].has("n"));
  EXPECT_EQ(error_of([&] { runs[1].done(); }), "file x: run[1].m is not known, wanted one of n")
      << "once each";
}

TEST(Settings, ErrorsSayWhatWasSeenAndWanted) {
  Settings s = settings_of("n = 3.5\nx = nan\nyes = 1\nname = ''\nlist = ['a', 1]\nt = 1\n");
  EXPECT_EQ(error_of([&] { s.integer("n", 1, 3); }), "file x: n is 3.5, wanted a whole number from 1 to 3");
  EXPECT_EQ(error_of([&] { s.number("x", 0, 1); }), "file x: x is nan, wanted a number from 0 to 1");
  EXPECT_EQ(error_of([&] { s.positive("x"); }),
            "file x: x is nan, wanted a number over 0 (inf: not checked)");
  EXPECT_EQ(error_of([&] { s.boolean("yes"); }), "file x: yes is 1, wanted true or false");
  EXPECT_NE(error_of([&] { s.word("name"); }).find("wanted a text"), std::string::npos);
  EXPECT_NE(error_of([&] { s.choice("name", {"p", "q"}); }).find("wanted one of p, q"), std::string::npos);
  EXPECT_NE(error_of([&] { s.words("list", "names"); }).find("wanted a list of names"), std::string::npos);
  EXPECT_EQ(error_of([&] { s.table("t"); }), "file x: t is 1, wanted a table");
  EXPECT_EQ(error_of([&] { s.tables("t"); }), "file x: t is 1, wanted a list of tables");
  EXPECT_EQ(error_of([&] { s.word("none"); }), "file x: none is missing");
  EXPECT_NE(error_of([] { settings_of("a = \nb = 2"); }).find("file x line 1"), std::string::npos);
}

}  // namespace
}  // namespace sinkscope
