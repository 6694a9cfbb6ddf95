// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <string>

#include "gtest/gtest.h"

#include "src/core/file.hpp"
#include "src/gate/gate.hpp"

namespace sinkscope {
namespace {

const char* const kDefault = "reports/gates/default.toml";

std::string changed(const std::string& from, const std::string& to) {
  std::string text = read_file(kDefault, "gate");
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string error_of(const std::string& toml) {
  try {
    parse_gate(toml, "test");
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(GateFile, DefaultReadsAndComesBack) {
  const Gate gate = read_gate(kDefault);
  EXPECT_EQ(gate.name, "default");
  EXPECT_EQ(gate.formats.size(), 3U);
  EXPECT_EQ(parse_gate(to_toml(gate), "default"), gate);
}

TEST(GateFile, SaysWhatIsWrongAndWhere) {
  const auto expect = [](const std::string& toml, const std::string& part) {
    EXPECT_NE(error_of(toml).find(part), std::string::npos) << error_of(toml);
  };
  expect("", "bf16");
  expect("[bf16", "line 1");
  expect(changed("z_rms = 1.05", "z_rms = -1"), "bf16.z_rms is -1");
  expect(changed("z_rms = 1.05", "z_rms = nan"), "bf16.z_rms is nan");
  expect(changed("z_rms = 1.05", "z_rms = \"1\""), "bf16.z_rms");
  expect(changed("z_rms = 1.05", ""), "bf16.z_rms is missing");
  expect(changed("z_rms = 1.05", "z_rms = 1.05\nz_mean = 1"), "bf16.z_mean is not known");
  expect(changed("[bias]", "[color]\nx = 1\n[bias]"), "color");
  expect(changed("repeatable = true", "repeatable = 1"), "repeatable is 1");
  expect(changed("judged = [", "judged = [1, "), "judged");
}

TEST(GateFile, InfinityIsNotChecked) {
  EXPECT_EQ(parse_gate(changed("z_rms = 1.05", "z_rms = inf"), "x").formats.at(DType::kBf16).tensors.z_rms,
            INFINITY);
}

TEST(JudgedPaths, FollowTheLists) {
  Gate gate = read_gate(kDefault);
  EXPECT_TRUE(is_judged(gate, "sink_kernel", "cpu amx"));
  EXPECT_FALSE(is_judged(gate, "eager", "cpu"));
  EXPECT_FALSE(is_judged(gate, "flash_attention_2_sink", "cpu aten"));
  EXPECT_TRUE(is_judged(gate, "flash_attention_2_sink", "cuda aten"));
  EXPECT_FALSE(is_judged(gate, "flash_attention_2_sink")) << "a backend that is not known is not judged";
  EXPECT_TRUE(is_judged(gate, "recorded.mine"));
  EXPECT_FALSE(is_judged(gate, "recorded.eager")) << "named after an observed path";
  EXPECT_TRUE(is_judged(gate, "fault:dq_scaled:sink_kernel"));
  EXPECT_FALSE(is_judged(gate, "fault:dq_scaled:eager"));
  judge_only(gate, {"eager", "recorded.mine"});
  EXPECT_TRUE(is_judged(gate, "eager"));
  EXPECT_TRUE(is_judged(gate, "recorded.mine"));
  EXPECT_FALSE(is_judged(gate, "sink_kernel"));
  EXPECT_FALSE(is_judged(gate, "recorded.eager"));
}

}  // namespace
}  // namespace sinkscope
