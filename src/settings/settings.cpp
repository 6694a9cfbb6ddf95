// SPDX-License-Identifier: Apache-2.0
#include "src/settings/settings.hpp"

#include <algorithm>
#include <sstream>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "toml++/toml.h"

#include "src/core/error.hpp"

namespace sinkscope {

struct Settings::Table {
  std::shared_ptr<const toml::table> file;
  const toml::table* keys;
  std::string where;
  std::vector<std::string> known;

  void know(std::string_view key) {
    if (std::find(known.begin(), known.end(), key) == known.end()) known.emplace_back(key);
  }

  const toml::node& node(std::string_view key) {
    know(key);
    const toml::node* found = keys->get(key);
    if (found == nullptr) throw InputError(fmt::format("{}{} is missing", where, key));
    return *found;
  }
};

Settings Settings::parse(std::string_view toml, const std::string& what) {
  try {
    const auto file = std::make_shared<const toml::table>(toml::parse(toml));
    return Settings(std::make_shared<Table>(Table{file, file.get(), what + ": ", {}}));
  } catch (const toml::parse_error& error) {
    throw InputError(fmt::format("{} line {}: {}", what, error.source().begin.line, error.description()));
  }
}

void Settings::refuse(std::string_view key, std::string_view wanted) const {
  std::ostringstream seen;
  table_->keys->get(key)->visit([&](const auto& value) { seen << value; });
  throw InputError(fmt::format("{}{} is {}, wanted {}", table_->where, key, seen.str(), wanted));
}

bool Settings::has(std::string_view key) {
  table_->know(key);
  return table_->keys->contains(key);
}

double Settings::positive(std::string_view key) {
  const auto value = table_->node(key).value<double>();
  if (!value || !(*value > 0)) refuse(key, "a number over 0 (inf: not checked)");
  return *value;
}

double Settings::number(std::string_view key, double least, double most) {
  const auto value = table_->node(key).value<double>();
  if (!value || !(*value >= least && *value <= most))
    refuse(key, fmt::format("a number from {} to {}", least, most));
  return *value;
}

std::int64_t Settings::integer(std::string_view key, std::int64_t least, std::int64_t most) {
  const auto value = table_->node(key).value_exact<std::int64_t>();
  if (!value || *value < least || *value > most)
    refuse(key, fmt::format("a whole number from {} to {}", least, most));
  return *value;
}

bool Settings::boolean(std::string_view key) {
  const auto value = table_->node(key).value_exact<bool>();
  if (!value) refuse(key, "true or false");
  return *value;
}

std::string Settings::word(std::string_view key) {
  const auto value = table_->node(key).value_exact<std::string>();
  if (!value || value->empty()) refuse(key, "a text");
  return *value;
}

std::string Settings::choice(std::string_view key, const std::vector<std::string>& known) {
  const auto value = table_->node(key).value_exact<std::string>();
  if (!value || std::find(known.begin(), known.end(), *value) == known.end())
    refuse(key, fmt::format("one of {}", fmt::join(known, ", ")));
  return *value;
}

std::vector<std::string> Settings::words(std::string_view key, std::string_view what) {
  const std::string wanted = fmt::format("a list of {}", what);
  const toml::array* array = table_->node(key).as_array();
  if (array == nullptr) refuse(key, wanted);
  std::vector<std::string> words;
  for (const toml::node& element : *array) {
    const auto word = element.value_exact<std::string>();
    if (!word || word->empty()) refuse(key, wanted);
    words.push_back(*word);
  }
  return words;
}

Settings Settings::table(std::string_view key) {
  const toml::table* keys = table_->node(key).as_table();
  if (keys == nullptr) refuse(key, "a table");
  return Settings(
      std::make_shared<Table>(Table{table_->file, keys, fmt::format("{}{}.", table_->where, key), {}}));
}

std::vector<Settings> Settings::tables(std::string_view key) {
  const toml::array* array = table_->node(key).as_array();
  if (array == nullptr || array->empty()) refuse(key, "a list of tables");
  std::vector<Settings> tables;
  for (const toml::node& element : *array) {
    if (!element.is_table()) refuse(key, "a list of tables");
    const std::string where = fmt::format("{}{}[{}].", table_->where, key, tables.size());
    tables.push_back(Settings(std::make_shared<Table>(Table{table_->file, element.as_table(), where, {}})));
  }
  return tables;
}

void Settings::done() const {
  const std::vector<std::string>& known = table_->known;
  for (const auto& [key, value] : *table_->keys) {
    if (std::find(known.begin(), known.end(), key.str()) == known.end()) {
      throw InputError(fmt::format("{}{} is not known, wanted one of {}", table_->where, key.str(),
                                   fmt::join(known, ", ")));
    }
  }
}

std::string toml_text(const std::string& text) {
  std::ostringstream quoted;
  quoted << toml::value<std::string>(text);
  return quoted.str();
}

}  // namespace sinkscope
