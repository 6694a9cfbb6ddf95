// SPDX-License-Identifier: Apache-2.0
// The shipped captures are the ones of the manifest, byte for byte, and the shipped suites are readable.
#include <filesystem>
#include <set>
#include <span>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "src/capture/capture.hpp"
#include "src/core/file.hpp"
#include "src/core/sha256.hpp"
#include "src/problem/problem.hpp"

namespace sinkscope {
namespace {

TEST(Manifest, ListsEveryCaptureWithItsHash) {
  const nlohmann::json manifest =
      nlohmann::json::parse(read_file("datasets/captures/manifest.json", "manifest"));
  std::set<std::string> listed;
  for (const nlohmann::json& entry : manifest["captures"]) {
    const std::string name = entry["file"];
    listed.insert("datasets/captures/" + name);
    const std::string bytes = read_file("datasets/captures/" + name, "capture");
    Sha256 hash;
    hash.update(std::as_bytes(std::span(bytes)));
    EXPECT_EQ(hash.hex(), entry["sha256"]) << name;
    EXPECT_EQ(bytes.size(), entry["bytes"]) << name;
    EXPECT_FALSE(entry["source"].get<std::string>().empty()) << name;
    Problem problem;
    problem.capture = "datasets/captures/" + name;
    const Case c = load_capture(problem);
    EXPECT_TRUE(unfit_inputs(c).empty()) << name;
    std::set<std::string> recorded;
    for (const auto& [path, outputs] : c.recorded) recorded.insert(path);
    EXPECT_EQ(recorded, entry["recorded"].get<std::set<std::string>>()) << name;
  }
  const std::vector<std::string> found = captures_at("datasets/captures");
  EXPECT_EQ(listed, std::set<std::string>(found.begin(), found.end()));
}

TEST(Suites, AreReadableAndNameTheirCaptures) {
  int suites = 0;
  for (const auto& entry : std::filesystem::directory_iterator("datasets/suites")) {
    if (entry.path().extension() != ".txt") continue;
    ++suites;
    for (const Problem& problem : read_suite(entry.path().string())) {
      if (!problem.capture.empty()) {
        EXPECT_TRUE(std::filesystem::exists(problem.capture)) << problem.capture;
      }
    }
  }
  EXPECT_EQ(suites, 5);
}

}  // namespace
}  // namespace sinkscope
