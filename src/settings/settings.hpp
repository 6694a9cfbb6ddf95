// SPDX-License-Identifier: Apache-2.0
// Settings from a TOML file, read key by key and strictly: a key that is missing, of the wrong kind or out of range is
// an error, and so is one that nobody asked for. No header of toml++ is included here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sinkscope {

// One table of a file. Copies share what they know. Every reader throws InputError: "gate default: bf16.z_rms is -1,
// wanted a number over 0".
class Settings {
 public:
  // `what` begins every message: "gate default". Throws InputError with the line of a syntax error.
  static Settings parse(std::string_view toml, const std::string& what);

  bool has(std::string_view key);         // it is known from now on
  double positive(std::string_view key);  // a number over 0; inf is one
  double number(std::string_view key, double least, double most);
  std::int64_t integer(std::string_view key, std::int64_t least, std::int64_t most);
  bool boolean(std::string_view key);
  std::string word(std::string_view key);  // a text that is not empty
  // One of `known`.
  std::string choice(std::string_view key, const std::vector<std::string>& known);
  // A list of texts that are not empty; `what` they are in the message: "path names".
  std::vector<std::string> words(std::string_view key, std::string_view what);
  Settings table(std::string_view key);
  std::vector<Settings> tables(std::string_view key);  // [[key]]

  // Throws InputError for a key of this table that was not asked for, listing those that were.
  void done() const;
  // Throws InputError: "<where>key is <its value>, wanted <wanted>".
  [[noreturn]] void refuse(std::string_view key, std::string_view wanted) const;

 private:
  struct Table;
  explicit Settings(std::shared_ptr<Table> table) : table_(std::move(table)) {}
  std::shared_ptr<Table> table_;
};

// A text as TOML writes it, in quotes.
std::string toml_text(const std::string& text);

}  // namespace sinkscope
