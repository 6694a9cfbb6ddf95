// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <map>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/core/error.hpp"
#include "src/problem/problem.hpp"
#include "src/problem/tokens.hpp"

namespace sinkscope {
namespace {

constexpr std::array<std::string_view, 2> kLayoutNames = {"bhsd", "bshd"};
constexpr std::array<std::string_view, 6> kFillNames = {"gaussian", "integers", "cancel",
                                                        "loud",     "ties",     "needle"};
// Splits at white space; a backslash takes the next character as it is.
std::vector<std::string> split(std::string_view line) {
  std::vector<std::string> tokens;
  std::string token;
  bool inside = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (c == '\\' && i + 1 < line.size()) {
      token += line[++i];
      inside = true;
    } else if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
      if (inside) tokens.push_back(std::exchange(token, {}));
      inside = false;
    } else {
      token += c;
      inside = true;
    }
  }
  if (inside) tokens.push_back(token);
  return tokens;
}

template <typename T>
T parse_number(std::string_view text, std::string_view token, T least, T most, std::string_view wanted) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() ||
      !(value >= least && value <= most)) {
    throw InputError(fmt::format("problem token '{}': wanted {}", token, wanted));
  }
  return value;
}

std::int64_t parse_count(std::string_view text, std::string_view token, std::int64_t least,
                         std::int64_t most) {
  return parse_number<std::int64_t>(text, token, least, most,
                                    fmt::format("a whole number from {} to {}", least, most));
}

double parse_real(std::string_view text, std::string_view token, std::string_view wanted) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  return parse_number<double>(text, token, -kInfinity, kInfinity, wanted);
}

std::vector<std::string_view> split_commas(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t comma = text.find(',');
    parts.push_back(text.substr(0, comma));
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

std::vector<std::int64_t> parse_lengths(std::string_view text, std::string_view token) {
  std::vector<std::int64_t> lengths;
  for (const std::string_view part : split_commas(text)) {
    lengths.push_back(parse_count(part, token, 0, kMostRows));
  }
  return lengths;
}

template <std::size_t N>
std::size_t parse_choice(std::string_view text, std::string_view token,
                         const std::array<std::string_view, N>& names) {
  const auto* const found = std::find(names.begin(), names.end(), text);
  if (found == names.end()) {
    throw InputError(fmt::format("problem token '{}': wanted one of {}", token, fmt::join(names, " ")));
  }
  return static_cast<std::size_t>(found - names.begin());
}

DType parse_float_dtype(std::string_view text, std::string_view token) {
  constexpr std::array<std::string_view, 3> kNames = {"bf16", "fp16", "fp32"};
  return *dtype_from_name(kNames[parse_choice(text, token, kNames)]);
}

void parse_sink(Problem& p, std::string_view text, std::string_view token) {
  if (text == "normal") {
    p.sink = SinkKind::kNormal;
  } else if (text == "none") {
    p.sink = SinkKind::kNone;
  } else if (text == "extreme") {
    p.sink = SinkKind::kExtreme;
  } else {
    p.sink = SinkKind::kValue;
    p.sink_value = parse_real(text, token, "normal, none, extreme or a number (inf and -inf are numbers)");
  }
}

void parse_grads(Problem& p, std::string_view text, std::string_view token) {
  p.grads = {false, false, false, false};
  if (text == "none") return;
  for (const std::string_view part : split_commas(text)) {
    bool* const wanted = part == "q"   ? &p.grads.q
                         : part == "k" ? &p.grads.k
                         : part == "v" ? &p.grads.v
                         : part == "s" ? &p.grads.s
                                       : nullptr;
    if (wanted == nullptr || *wanted) {
      throw InputError(fmt::format("problem token '{}': wanted none, or some of q,k,v,s, each once", token));
    }
    *wanted = true;
  }
}

// A token is a key and a value: "hq64" is hq and 64, "causal" is mask and causal. The key says what may not
// be repeated.
struct TokenForm {
  std::string_view key;
  bool describes_shape;  // has no meaning beside capture=
  void (*apply)(Problem& p, std::string_view value, std::string_view token);
};

const std::array kCounted = {
    TokenForm{"b", true, [](Problem& p, auto v, auto t) { p.shape.b = parse_count(v, t, 1, kMostBatch); }},
    TokenForm{"hq", true, [](Problem& p, auto v, auto t) { p.shape.hq = parse_count(v, t, 1, kMostHeads); }},
    TokenForm{"hkv", true,
              [](Problem& p, auto v, auto t) { p.shape.hkv = parse_count(v, t, 1, kMostHeads); }},
    TokenForm{"sq", true, [](Problem& p, auto v, auto t) { p.shape.sq = parse_count(v, t, 1, kMostRows); }},
    TokenForm{"sk", true, [](Problem& p, auto v, auto t) { p.shape.sk = parse_count(v, t, 1, kMostRows); }},
    TokenForm{"d", true, [](Problem& p, auto v, auto t) { p.shape.d = parse_count(v, t, 1, kMostHeadDim); }},
    TokenForm{"w", true,
              [](Problem& p, auto v, auto t) { p.shape.window = parse_count(v, t, 1, kMostRows); }},
};

const std::array kAssigned = {
    TokenForm{"capture", false, [](Problem& p, auto v, auto) { p.capture = v; }},
    TokenForm{"docs", true, [](Problem& p, auto v, auto t) { p.shape.docs = parse_lengths(v, t); }},
    TokenForm{"docs_k", true, [](Problem& p, auto v, auto t) { p.shape.docs_k = parse_lengths(v, t); }},
    TokenForm{"seqlens", true, [](Problem& p, auto v, auto t) { p.shape.seqlens = parse_lengths(v, t); }},
    TokenForm{"sink", true, parse_sink},
    TokenForm{"sink_dtype", true, [](Problem& p, auto v, auto t) { p.sink_dtype = parse_float_dtype(v, t); }},
    TokenForm{"scale", true,
              [](Problem& p, auto v, auto t) { p.shape.scale = parse_real(v, t, "a finite number"); }},
    TokenForm{
        "layout", false,
        [](Problem& p, auto v, auto t) { p.layout = static_cast<Layout>(parse_choice(v, t, kLayoutNames)); }},
    TokenForm{"grads", false, parse_grads},
    TokenForm{"fill", true,
              [](Problem& p, auto v, auto t) { p.fill = static_cast<Fill>(parse_choice(v, t, kFillNames)); }},
    TokenForm{"seed", true,
              [](Problem& p, auto v, auto t) {
                p.seed = parse_number<std::uint64_t>(v, t, 0, std::numeric_limits<std::uint64_t>::max(),
                                                     "a whole number from 0 to 2^64 - 1");
              }},
};

const std::array kWords = {
    TokenForm{"bf16", true, [](Problem& p, auto, auto) { p.shape.dtype = DType::kBf16; }},
    TokenForm{"fp16", true, [](Problem& p, auto, auto) { p.shape.dtype = DType::kFp16; }},
    TokenForm{"fp32", true, [](Problem& p, auto, auto) { p.shape.dtype = DType::kFp32; }},
    TokenForm{"causal", true, [](Problem& p, auto, auto) { p.shape.causal = true; }},
    TokenForm{"full", true, [](Problem& p, auto, auto) { p.shape.causal = false; }},
    TokenForm{"dlse", true, [](Problem& p, auto, auto) { p.dlse = true; }},
    TokenForm{"residual", false, [](Problem& p, auto, auto) { p.residual = true; }},
};

// Words that exclude each other share a key.
std::string_view key_of_word(std::string_view word) {
  if (word == "bf16" || word == "fp16" || word == "fp32") return "the format";
  if (word == "causal" || word == "full") return "the mask";
  return word;
}

struct MatchedToken {
  const TokenForm* form;
  std::string_view key;
  std::string_view value;
};

MatchedToken match(std::string_view token) {
  const auto find = [](const auto& table, std::string_view key) -> const TokenForm* {
    for (const TokenForm& form : table) {
      if (form.key == key) return &form;
    }
    return nullptr;
  };
  if (const std::size_t equals = token.find('='); equals != std::string_view::npos) {
    const std::string_view key = token.substr(0, equals);
    if (const TokenForm* form = find(kAssigned, key)) return {form, key, token.substr(equals + 1)};
  } else {
    if (const TokenForm* form = find(kWords, token)) return {form, key_of_word(token), {}};
    const std::size_t digits = token.find_first_not_of("abcdefghijklmnopqrstuvwxyz_");
    const std::string_view key = token.substr(0, digits);
    if (digits != std::string_view::npos) {
      if (const TokenForm* form = find(kCounted, key)) return {form, key, token.substr(digits)};
    }
  }
  throw InputError(
      fmt::format("problem token '{}' is not known: wanted bN hqN hkvN sqN skN dN, bf16|fp16|fp32, "
                  "causal|full, wN, docs=, docs_k=, seqlens=, "
                  "sink=, sink_dtype=, scale=, dlse, layout=, grads=, residual, fill=, seed= or capture=",
                  token));
}

}  // namespace

std::string_view name_of(Layout layout) {
  return kLayoutNames[static_cast<std::size_t>(layout)];
}
std::string_view name_of(Fill fill) {
  return kFillNames[static_cast<std::size_t>(fill)];
}

const std::vector<Fill>& all_fills() {
  static const std::vector<Fill> kFills = {Fill::kGaussian, Fill::kIntegers, Fill::kCancel,
                                           Fill::kLoud,     Fill::kTies,     Fill::kNeedle};
  return kFills;
}

Problem parse_problem(std::string_view line) {
  Problem p;
  std::map<std::string_view, std::string> seen;  // key -> token
  const std::vector<std::string> tokens = split(line);
  if (tokens.empty())
    throw InputError(
        "the problem line is empty, wanted for example 'b1 hq8 hkv2 sq512 sk512 d64 bf16 causal'");
  const std::string* shape_token = nullptr;
  for (const std::string& token : tokens) {
    const MatchedToken matched = match(token);
    const auto [earlier, inserted] = seen.emplace(matched.key, token);
    if (!inserted) {
      throw InputError(fmt::format("problem token '{}' repeats {}: '{}' came before", token, matched.key,
                                   earlier->second));
    }
    matched.form->apply(p, matched.value, token);
    if (matched.form->describes_shape && shape_token == nullptr) shape_token = &token;
  }

  if (seen.contains("capture")) {
    if (p.capture.empty()) throw InputError("problem token 'capture=': wanted a path");
    if (shape_token != nullptr) {
      throw InputError(fmt::format(
          "problem token '{}' has no meaning beside capture=: the capture brings its own", *shape_token));
    }
    return p;
  }
  AttentionShape& s = p.shape;
  if (!seen.contains("hkv")) s.hkv = s.hq;
  if (!seen.contains("sq") && !s.docs.empty()) s.sq = total_of(s.docs);
  if (!seen.contains("sk")) s.sk = s.docs.empty() ? s.sq : total_of(s.docs_k.empty() ? s.docs : s.docs_k);
  if (!seen.contains("scale")) s.scale = default_scale(s.d);
  check_problem(p);
  return p;
}

}  // namespace sinkscope
