// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/core/file.hpp"
#include "src/gate/gate.hpp"
#include "src/settings/settings.hpp"

namespace sinkscope {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::array kJudgedFormats = {DType::kBf16, DType::kFp16, DType::kFp32};

FormatLimits read_format(Settings table) {
  FormatLimits limits{};
  limits.tensors = {table.positive("z_rms"), table.positive("z_row"), table.positive("z_max")};
  limits.dsinks = table.positive("dsinks");
  limits.bias_z = table.positive("bias_z");
  Settings lse = table.table("lse");
  limits.lse = {lse.positive("z_rms"), kInfinity, lse.positive("z_max")};
  lse.done();
  table.done();
  return limits;
}

std::string number(double value) {
  return std::isinf(value) ? "inf" : fmt::format("{}", value);
}

std::string toml_list(const std::vector<std::string>& names) {
  std::vector<std::string> quoted;
  for (const std::string& name : names) quoted.push_back(toml_text(name));
  return fmt::format("[{}]", fmt::join(quoted, ", "));
}

}  // namespace

Gate parse_gate(std::string_view text, const std::string& name) {
  Settings root = Settings::parse(text, "gate " + name);
  Gate gate;
  gate.name = name;
  for (const DType dtype : kJudgedFormats) gate.formats[dtype] = read_format(root.table(name_of(dtype)));
  Settings bias = root.table("bias");
  gate.bias_significance = bias.positive("significance");
  bias.done();
  Settings paths = root.table("paths");
  gate.repeatable = paths.boolean("repeatable");
  gate.judged = paths.words("judged", "path names");
  gate.observed = paths.words("observed", "path names");
  paths.done();
  root.done();
  return gate;
}

Gate read_gate(const std::string& path) {
  return parse_gate(read_file(path, "gate"), std::filesystem::path(path).stem().string());
}

std::string to_toml(const Gate& gate) {
  std::string text;
  for (const auto& [dtype, limits] : gate.formats) {
    text += fmt::format(
        "[{}]\nz_rms = {}\nz_row = {}\nz_max = {}\ndsinks = {}\nbias_z = {}\nlse = {{ z_rms = {}, z_max = {} "
        "}}\n\n",
        name_of(dtype), number(limits.tensors.z_rms), number(limits.tensors.z_row),
        number(limits.tensors.z_max), number(limits.dsinks), number(limits.bias_z), number(limits.lse.z_rms),
        number(limits.lse.z_max));
  }
  text += fmt::format("[bias]\nsignificance = {}\n\n", number(gate.bias_significance));
  text += fmt::format("[paths]\nrepeatable = {}\njudged = {}\nobserved = {}\n", gate.repeatable,
                      toml_list(gate.judged), toml_list(gate.observed));
  return text;
}

}  // namespace sinkscope
