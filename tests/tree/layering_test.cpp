// SPDX-License-Identifier: Apache-2.0
// Who may include whom: the leaves share nothing, src/ only looks down, and each foreign library stays in its room.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;

std::string content_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// The folders of src/ from the lowest up, as src/CMakeLists.txt lists them.
std::vector<std::string> src_order() {
  const std::string text = content_of("src/CMakeLists.txt");
  const std::size_t start = text.find("foreach(folder ") + std::string_view("foreach(folder ").size();
  std::istringstream names(text.substr(start, text.find(')', start) - start));
  std::vector<std::string> order;
  for (std::string name; names >> name;) order.push_back(name);
  return order;
}

// What stands between the quotes or brackets of every #include line.
std::vector<std::string> includes_of(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("#include ") || line.size() < 11) continue;
    found.push_back(line.substr(10, line.find_first_of(">\"", 10) - 10));
  }
  return found;
}

// "src/gate" of "src/gate/judge.cpp", "kernels" of "kernels/cpu/isa.h"; the Python package is a room of its own.
std::string room_of(const std::string& path) {
  constexpr std::string_view kPython = "tools/python";
  if (path.starts_with(kPython)) return std::string(kPython);
  const std::size_t first = path.find('/');
  if (first == std::string::npos) return "";
  return path.starts_with("src/") ? path.substr(0, path.find('/', first + 1)) : path.substr(0, first);
}

// A foreign library's headers and a room that may see them.
struct Library {
  std::string_view prefix, room;
};
constexpr Library kLibraries[] = {{"ATen/", "src/torch"},
                                  {"torch/", "src/torch"},
                                  {"c10/", "src/torch"},
                                  {"ATen/", "src/lab"},
                                  {"torch/", "src/lab"},
                                  {"CLI/", "tools"},
                                  {"hdf5", "src/record"},
                                  {"toml++/", "src/settings"},
                                  {"cuda", "kernels"},
                                  {"cuda", "src/paths"},
                                  {"cuda", "src/bench"},
                                  {"torch/csrc/stable/", "tools/python"},
                                  {"torch/headeronly/", "tools/python"}};
// The two leaves, and the rooms of src/ that may look at them through one header each.
struct Leaf {
  std::string_view name, header;
  std::vector<std::string_view> users;
};
const Leaf kLeaves[] = {{"kernels", "kernels/sink_attention.h", {"src/paths", "src/lab", "tools/python"}},
                        {"reference", "reference/attention.hpp", {"src/truth", "src/bench", "tools/python"}}};

bool is_library_allowed(const std::string& include, const std::string& room) {
  bool is_foreign = false;
  for (const Library& library : kLibraries) {
    if (!include.starts_with(library.prefix)) continue;
    if (room == library.room) return true;
    is_foreign = true;
  }
  return !is_foreign;
}

bool is_leaf_allowed(const std::string& include, const std::string& room) {
  for (const Leaf& leaf : kLeaves) {
    if (room_of(include) != leaf.name) continue;
    if (room == leaf.name) return true;
    return include == leaf.header &&
           std::find(leaf.users.begin(), leaf.users.end(), room) != leaf.users.end();
  }
  return true;
}

bool is_direction_allowed(const std::string& include, const std::string& room,
                          const std::vector<std::string>& order) {
  const auto level = [&](const std::string& name) {
    return name.starts_with("src/") ? std::find(order.begin(), order.end(), name.substr(4)) - order.begin()
                                    : 0;
  };
  const std::string target = room_of(include);
  if (target.starts_with("tools") || target == "tests") return room == target;
  if (!target.starts_with("src/")) return true;
  if (room == "tools") return true;
  return room.starts_with("src/") && level(target) <= level(room);
}

// One sentence for each include of a file that may not be.
std::vector<std::string> violations(const std::string& path, const std::string& text,
                                    const std::vector<std::string>& order) {
  std::vector<std::string> found;
  const std::string room = room_of(path);
  for (const std::string& include : includes_of(text)) {
    if (!is_library_allowed(include, room) || !is_leaf_allowed(include, room) ||
        !is_direction_allowed(include, room, order)) {
      found.push_back(path + " may not include " + include);
    }
  }
  return found;
}

std::vector<fs::path> sources_of(const std::vector<std::string>& folders) {
  std::vector<fs::path> sources;
  for (const std::string& folder : folders) {
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      const std::string extension = entry.path().extension().string();
      for (const char* known : {".h", ".hpp", ".cpp", ".inl", ".cu", ".cuh"}) {
        if (extension == known) sources.push_back(entry.path());
      }
    }
  }
  return sources;
}

TEST(Layering, EveryIncludeLooksDown) {
  const std::vector<std::string> order = src_order();
  const std::vector<fs::path> sources = sources_of({"kernels", "reference", "src", "tools"});
  ASSERT_GT(sources.size(), 50U);
  for (const fs::path& source : sources) {
    for (const std::string& sentence : violations(source.string(), content_of(source), order))
      ADD_FAILURE() << sentence;
  }
}

TEST(Layering, EveryFolderOfSrcHasALevel) {
  const std::vector<std::string> order = src_order();
  for (const auto& entry : fs::directory_iterator("src")) {
    if (!entry.is_directory()) continue;
    EXPECT_NE(std::find(order.begin(), order.end(), entry.path().filename().string()), order.end())
        << entry.path();
  }
}

TEST(Layering, ForbiddenIncludesAreSeen) {
  const std::vector<std::string> order = {"core", "diff", "gate", "record"};
  const auto count = [&](const std::string& path, const std::string& include) {
    return violations(path, "// text\n#include " + include + "\n", order).size();
  };
  EXPECT_EQ(count("src/diff/measure.cpp", "\"src/gate/gate.hpp\""), 1U) << "upward";
  EXPECT_EQ(count("src/gate/judge.cpp", "\"src/diff/diff.hpp\""), 0U) << "downward";
  EXPECT_EQ(count("src/core/tensor.cpp", "\"tools/sinkscope/commands.hpp\""), 1U);
  EXPECT_EQ(count("src/gate/gate.cpp", "<ATen/ATen.h>"), 1U) << "torch outside its adapter";
  EXPECT_EQ(count("src/torch/flash.cpp", "<ATen/ATen.h>"), 0U);
  EXPECT_EQ(count("tools/python/native/kernel.cpp", "<torch/csrc/stable/ops.h>"), 0U);
  EXPECT_EQ(count("tools/python/native/kernel.cpp", "<torch/csrc/autograd/function.h>"), 1U)
      << "not stable ABI";
  EXPECT_EQ(count("tools/python/native/kernel.cpp", "\"src/core/dtype.hpp\""), 1U) << "needs the toolkit";
  EXPECT_EQ(count("src/gate/gate.cpp", "\"CLI/CLI.hpp\""), 1U) << "CLI11 outside tools";
  EXPECT_EQ(count("src/gate/gate.cpp", "<hdf5.h>"), 1U) << "HDF5 outside the record";
  EXPECT_EQ(count("kernels/cpu/attention.cpp", "\"src/core/dtype.hpp\""), 1U) << "a leaf looks up";
  EXPECT_EQ(count("kernels/cpu/attention.cpp", "\"reference/attention.hpp\""), 1U) << "a leaf looks sideways";
  EXPECT_EQ(count("reference/head.cpp", "\"kernels/sink_attention.h\""), 1U);
  EXPECT_EQ(count("src/paths/sink_kernel.cpp", "\"kernels/cpu/config.h\""), 1U) << "past the leaf's header";
}

TEST(Sources, StartWithTheirLicence) {
  for (const fs::path& source : sources_of({"kernels", "reference", "src", "tools", "tests"}))
    EXPECT_TRUE(content_of(source).starts_with("// SPDX-License-Identifier: Apache-2.0\n")) << source;
}

TEST(Sources, AreShort) {
  constexpr std::ptrdiff_t kMostLines = 700;
  for (const fs::path& source : sources_of({"kernels", "reference", "src", "tools", "tests"})) {
    const std::string text = content_of(source);
    EXPECT_LE(std::count(text.begin(), text.end(), '\n'), kMostLines) << source;
  }
}

}  // namespace
}  // namespace sinkscope
