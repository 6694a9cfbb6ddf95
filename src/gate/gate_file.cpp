// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <sstream>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "toml++/toml.h"

#include "src/core/file.hpp"
#include "src/gate/gate.hpp"

namespace sinkscope {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::array kJudgedFormats = {DType::kBf16, DType::kFp16, DType::kFp32};

// One table of the file: reads its keys and complains about those that nobody asked for.
class TableReader {
 public:
  TableReader(const toml::table& table, std::string where) : table_(table), where_(std::move(where)) {}

  double positive(std::string_view key) {
    const auto value = node(key).value<double>();
    if (!value || !(*value > 0)) fail(key, "a number over 0 (inf: not checked)");
    return *value;
  }

  bool boolean(std::string_view key) {
    if (!node(key).is_boolean()) fail(key, "true or false");
    return *node(key).value<bool>();
  }

  std::vector<std::string> names(std::string_view key) {
    const toml::array* array = node(key).as_array();
    if (array == nullptr) fail(key, "a list of path names");
    std::vector<std::string> names;
    for (const toml::node& element : *array) {
      const auto name = element.value_exact<std::string>();
      if (!name || name->empty()) fail(key, "a list of path names");
      names.push_back(*name);
    }
    return names;
  }

  TableReader table(std::string_view key) {
    const toml::table* table = node(key).as_table();
    if (table == nullptr) fail(key, "a table");
    return {*table, where_ + std::string(key) + "."};
  }

  void done() const {
    for (const auto& [key, value] : table_) {
      if (std::find(known_.begin(), known_.end(), key.str()) == known_.end()) {
        throw InputError(
            fmt::format("{}{} is not known, wanted {}", where_, key.str(), fmt::join(known_, ", ")));
      }
    }
  }

 private:
  const toml::node& node(std::string_view key) {
    known_.emplace_back(key);
    const toml::node* found = table_.get(key);
    if (found == nullptr) throw InputError(fmt::format("{}{} is missing", where_, key));
    return *found;
  }

  [[noreturn]] void fail(std::string_view key, std::string_view wanted) const {
    std::ostringstream seen;
    table_.get(key)->visit([&](const auto& value) { seen << value; });
    throw InputError(fmt::format("{}{} is {}, wanted {}", where_, key, seen.str(), wanted));
  }

  const toml::table& table_;
  std::string where_;
  std::vector<std::string> known_;
};

FormatLimits read_format(TableReader table) {
  FormatLimits limits{};
  limits.tensors = {table.positive("z_rms"), table.positive("z_row"), table.positive("z_max")};
  limits.dsinks = table.positive("dsinks");
  limits.bias_z = table.positive("bias_z");
  TableReader lse = table.table("lse");
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
  for (const std::string& name : names) {
    std::ostringstream text;
    text << toml::value<std::string>(name);
    quoted.push_back(text.str());
  }
  return fmt::format("[{}]", fmt::join(quoted, ", "));
}

}  // namespace

Gate parse_gate(std::string_view text, const std::string& name) {
  toml::table parsed;
  try {
    parsed = toml::parse(text);
  } catch (const toml::parse_error& error) {
    throw InputError(
        fmt::format("gate {} line {}: {}", name, error.source().begin.line, error.description()));
  }
  TableReader root(parsed, fmt::format("gate {}: ", name));
  Gate gate;
  gate.name = name;
  for (const DType dtype : kJudgedFormats) gate.formats[dtype] = read_format(root.table(name_of(dtype)));
  TableReader bias = root.table("bias");
  gate.bias_significance = bias.positive("significance");
  bias.done();
  TableReader paths = root.table("paths");
  gate.repeatable = paths.boolean("repeatable");
  gate.judged = paths.names("judged");
  gate.observed = paths.names("observed");
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
