// SPDX-License-Identifier: Apache-2.0
#include "src/capture/safetensors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <vector>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

#include "src/core/error.hpp"
#include "src/core/file.hpp"

namespace sinkscope {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

constexpr std::uint64_t kMostHeaderBytes = 100'000'000;
constexpr std::size_t kMostDimensions = 8;
constexpr std::size_t kMostDepth = 4;

struct Format {
  std::string_view name;
  DType dtype;
};
constexpr std::array kFormats = {Format{"BF16", DType::kBf16}, Format{"F16", DType::kFp16},
                                 Format{"F32", DType::kFp32},  Format{"F64", DType::kFp64},
                                 Format{"I32", DType::kInt32}, Format{"I64", DType::kInt64}};

// One tensor's entry in the header, checked.
struct Entry {
  std::string name;
  DType dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin, end;
};

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path) {
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) fail("is a folder, wanted a safetensors file");
    if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error)) {
      fail("is a device or a pipe, wanted a safetensors file");
    }
    stream_.open(path, std::ios::binary | std::ios::ate);
    if (!stream_) fail(fmt::format("cannot be read: {}", std::strerror(errno)));
    size_ = static_cast<std::uint64_t>(stream_.tellg());
    if (size_ < 8)
      fail(fmt::format("has {} bytes, wanted at least the 8 of a safetensors header length", size_));
  }

  Safetensors read() {
    const Json header = read_header();
    Safetensors content;
    std::vector<Entry> entries;
    for (const auto& [name, value] : header.items()) {
      if (name == "__metadata__") {
        content.metadata = metadata_of(value);
      } else {
        entries.push_back(entry_of(name, value));
      }
    }
    check_coverage(entries);
    for (const Entry& entry : entries) {
      Tensor tensor(entry.dtype, entry.shape);
      stream_.seekg(static_cast<std::streamoff>(data_start_ + entry.begin));
      stream_.read(reinterpret_cast<char*>(tensor.data()), static_cast<std::streamsize>(tensor.bytes()));
      if (!stream_) fail(fmt::format("ended while '{}' was read", entry.name));
      content.tensors.emplace(entry.name, std::move(tensor));
    }
    return content;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw InputError(fmt::format("{} {}", path_, message));
  }

  Json read_header() {
    std::array<unsigned char, 8> length_bytes{};
    stream_.seekg(0);
    stream_.read(reinterpret_cast<char*>(length_bytes.data()), 8);
    std::uint64_t length = 0;
    std::memcpy(&length, length_bytes.data(), 8);
    if (length > kMostHeaderBytes || length > size_ - 8) {
      fail(fmt::format("says that its header has {} bytes, wanted at most {}", length,
                       std::min(kMostHeaderBytes, size_ - 8)));
    }
    data_start_ = 8 + length;
    std::string text(length, '\0');
    stream_.read(text.data(), static_cast<std::streamsize>(length));
    if (!stream_) fail("ended inside its header");

    // A repeated key would hide a tensor, or a part of one: two readers could see two files.
    std::array<std::set<std::string>, kMostDepth + 1> keys;  // of the open object, by depth
    std::string trouble;
    const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
      const auto level = static_cast<std::size_t>(depth);
      if (level > kMostDepth) {
        trouble = fmt::format("is nested more than {} deep", kMostDepth);
        return false;
      }
      if (event == Json::parse_event_t::object_start && level < kMostDepth) keys[level + 1].clear();
      if (event == Json::parse_event_t::key && !keys[level].insert(parsed.get<std::string>()).second) {
        trouble = fmt::format("names '{}' twice", printable(parsed.get<std::string>()));
      }
      return true;
    };
    Json header;
    try {
      header = Json::parse(text, watch);
    } catch (const Json::exception&) {
      fail("has a header that is not JSON: it is damaged or not a safetensors file");
    }
    if (!trouble.empty()) fail("has a header that " + trouble);
    if (!header.is_object()) fail("has a header that is not a JSON object");
    return header;
  }

  static std::string printable(std::string_view text) {
    std::string out;
    for (const char c : text.substr(0, 80)) out += (c >= ' ' && c != 127) ? c : '?';
    return out;
  }

  std::map<std::string, std::string> metadata_of(const Json& value) const {
    if (!value.is_object()) fail("has a __metadata__ that is not an object of strings");
    std::map<std::string, std::string> metadata;
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) fail(fmt::format("has metadata '{}' that is not a string", printable(key)));
      metadata[key] = text.get<std::string>();
    }
    return metadata;
  }

  Entry entry_of(const std::string& raw_name, const Json& value) const {
    const std::string name = printable(raw_name);
    const auto member = [&](const char* key) -> const Json& {
      if (!value.is_object() || !value.contains(key)) fail(fmt::format("gives '{}' no {}", name, key));
      return value.at(key);
    };
    const Json& dtype_json = member("dtype");
    const std::string dtype_name =
        dtype_json.is_string() ? printable(dtype_json.get<std::string>()) : "not a string";
    const auto* const format =
        std::find_if(kFormats.begin(), kFormats.end(), [&](const Format& f) { return f.name == dtype_name; });
    if (format == kFormats.end()) {
      fail(fmt::format("has '{}' in format {}, wanted BF16, F16, F32, F64, I32 or I64", name, dtype_name));
    }

    Entry entry{raw_name, format->dtype, {}, 0, 0};
    const Json& shape = member("shape");
    if (!shape.is_array() || shape.size() > kMostDimensions) {
      fail(fmt::format("gives '{}' a shape that is not a list of at most {} numbers", name, kMostDimensions));
    }
    std::uint64_t bytes = size_of(entry.dtype);
    for (const Json& extent : shape) {
      if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > (std::uint64_t{1} << 40)) {
        fail(fmt::format("gives '{}' an extent of {}, wanted a whole number up to 2^40", name,
                         printable(extent.dump())));
      }
      entry.shape.push_back(extent.get<std::int64_t>());
      if (__builtin_mul_overflow(bytes, extent.get<std::uint64_t>(), &bytes)) {
        fail(fmt::format("gives '{}' a shape {} of more than 2^64 bytes", name, shape_text(entry.shape)));
      }
    }
    const Json& offsets = member("data_offsets");
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      fail(fmt::format("gives '{}' data_offsets that are not two whole numbers", name));
    }
    entry.begin = offsets[0].get<std::uint64_t>();
    entry.end = offsets[1].get<std::uint64_t>();
    if (entry.end > size_ - data_start_ || entry.begin > entry.end) {
      fail(fmt::format("places '{}' at bytes {} to {} of {}: it is cut short or damaged", name, entry.begin,
                       entry.end, size_ - data_start_));
    }
    if (entry.end - entry.begin != bytes) {
      fail(fmt::format("gives '{}' {} bytes, its shape {} in {} needs {}", name, entry.end - entry.begin,
                       shape_text(entry.shape), dtype_name, bytes));
    }
    return entry;
  }

  // The tensors must fill the data exactly: no overlap, no gap, nothing behind the last one.
  void check_coverage(std::vector<Entry>& entries) const {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    std::uint64_t covered = 0;
    for (const Entry& entry : entries) {
      if (entry.begin != covered) {
        fail(fmt::format("has '{}' starting at byte {}, wanted {}: tensors {}", printable(entry.name),
                         entry.begin, covered, entry.begin < covered ? "overlap" : "leave a gap"));
      }
      covered = entry.end;
    }
    if (covered != size_ - data_start_) {
      fail(fmt::format("has {} bytes of data, its tensors cover {}", size_ - data_start_, covered));
    }
  }

  std::string path_;
  std::ifstream stream_;
  std::uint64_t size_ = 0;
  std::uint64_t data_start_ = 0;
};

}  // namespace

Safetensors read_safetensors(const std::string& path) {
  return Reader(path).read();
}

void write_safetensors(const std::string& path, const Safetensors& content, bool overwrite) {
  Json header = Json::object();
  header["__metadata__"] = content.metadata;
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : content.tensors) {
    const auto* const format =
        std::find_if(kFormats.begin(), kFormats.end(),
                     [dtype = tensor.dtype()](const Format& f) { return f.dtype == dtype; });
    header[name] = {{"dtype", format->name},
                    {"shape", tensor.shape()},
                    {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  // A path among the metadata need not be UTF-8, JSON must be.
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // aligned data, as the format's own writer does

  PendingFile file(path, overwrite);
  std::ofstream stream(file.temporary_path(), std::ios::binary);
  const std::uint64_t length = text.size();
  stream.write(reinterpret_cast<const char*>(&length), 8);
  stream.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (const auto& [name, tensor] : content.tensors) {
    stream.write(reinterpret_cast<const char*>(tensor.data()), static_cast<std::streamsize>(tensor.bytes()));
  }
  stream.close();
  if (!stream) throw EnvironmentError(fmt::format("{} could not be written: {}", path, std::strerror(errno)));
  file.commit();
}

}  // namespace sinkscope
