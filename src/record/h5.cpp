// SPDX-License-Identifier: Apache-2.0
#include "src/record/h5.hpp"

#include <algorithm>
#include <hdf5_hl.h>
#include <string_view>
#include <utility>

namespace sinkscope::h5 {
namespace {

constexpr hsize_t kMostElements = hsize_t{1} << 34;

// Comes before any other call of HDF5. It prints its error stack unless told not to, and at exit it would flush
// files that a full disk left open, and crash: every handle here is closed by its owner.
void prepare() {
  static const bool kPrepared = [] {
    H5dont_atexit();
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    return true;
  }();
  static_cast<void>(kPrepared);
}

std::string innermost_reason() {
  std::string reason;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* error, void* data) -> herr_t {
        if (n == 0 && error->desc != nullptr) *static_cast<std::string*>(data) = error->desc;
        return 0;
      },
      &reason);
  // A failed write comes as a paragraph; the system's own words for it are in quotes.
  constexpr std::string_view kMark = "error message = '";
  const std::size_t mark = reason.find(kMark);
  if (mark != std::string::npos) {
    reason.erase(0, mark + kMark.size());
    reason.erase(std::min(reason.find('\''), reason.size()));
  }
  return reason.empty() ? "no reason given" : reason;
}

Handle text_type() {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "text type");
  check(H5Tset_size(type, H5T_VARIABLE), "text type");
  check(H5Tset_cset(type, H5T_CSET_UTF8), "text type");
  return type;
}

Handle space_of(const Extents& extents) {
  return {H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), H5Sclose,
          "data space"};
}

// Chunks of at most about 64 thousand elements, whole trailing dimensions first.
Extents chunk_of(Extents extents) {
  hsize_t most = 65536;
  for (std::size_t i = extents.size(); i-- > 0;) {
    extents[i] = std::max<hsize_t>(1, std::min(extents[i], most));
    most = std::max<hsize_t>(1, most / extents[i]);
  }
  return extents;
}

Handle write_values(hid_t parent, const std::string& name, const Extents& extents, hid_t file_type,
                    hid_t memory_type, const void* values) {
  const Handle space = space_of(extents);
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "dataset properties");
  const bool empty = std::find(extents.begin(), extents.end(), hsize_t{0}) != extents.end();
  if (!extents.empty() && !empty) {
    const Extents chunk = chunk_of(extents);
    check(H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data()), name);
    if (H5Tget_class(file_type) != H5T_STRING) {
      check(H5Pset_shuffle(properties), name);
      check(H5Pset_deflate(properties, 4), name);
      check(H5Pset_fletcher32(properties), name);
    }
  }
  Handle dataset(H5Dcreate2(parent, name.c_str(), file_type, space, H5P_DEFAULT, properties, H5P_DEFAULT),
                 H5Dclose, name);
  if (!empty) check(H5Dwrite(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values), name);
  return dataset;
}

template <typename T>
std::vector<T> read_values(hid_t parent, const std::string& name, hid_t memory_type) {
  const Handle dataset = open_dataset(parent, name);
  const Handle space(H5Dget_space(dataset), H5Sclose, name);
  const hssize_t count = H5Sget_simple_extent_npoints(space);
  if (count < 0 || static_cast<hsize_t>(count) > kMostElements)
    throw Hdf5Error(name + " has an impossible size");
  std::vector<T> values(static_cast<std::size_t>(count));
  if (count > 0) check(H5Dread(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), name);
  return values;
}

void read_into(hid_t parent, const std::string& name, hid_t memory_type, void* into, std::size_t count) {
  const Handle dataset = open_dataset(parent, name);
  const Handle space(H5Dget_space(dataset), H5Sclose, name);
  if (H5Sget_simple_extent_npoints(space) != static_cast<hssize_t>(count))
    throw Hdf5Error(name + " has an impossible size");
  if (count > 0) check(H5Dread(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, into), name);
}

}  // namespace

Handle::Handle(hid_t id, herr_t (*close)(hid_t), const std::string& what) : id_(id), close_(close) {
  if (id < 0) throw Hdf5Error(what + ": " + innermost_reason());
}
Handle::~Handle() {
  if (id_ >= 0) close_(id_);
}
Handle::Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}

void check(herr_t status, const std::string& what) {
  if (status < 0) throw Hdf5Error(what + ": " + innermost_reason());
}

std::string version() {
  prepare();
  unsigned major = 0, minor = 0, release = 0;
  check(H5get_libversion(&major, &minor, &release), "version");
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
}

Handle create_file(const std::string& path) {
  prepare();
  return {H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose, path};
}

Handle open_file(const std::string& path) {
  prepare();
  return {H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose, path};
}

Handle create_group(hid_t parent, const std::string& name) {
  return {H5Gcreate2(parent, name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose, name};
}

Handle open_group(hid_t parent, const std::string& name) {
  return {H5Gopen2(parent, name.c_str(), H5P_DEFAULT), H5Gclose, name};
}
Handle open_dataset(hid_t parent, const std::string& name) {
  return {H5Dopen2(parent, name.c_str(), H5P_DEFAULT), H5Dclose, name};
}
bool exists(hid_t parent, const std::string& name) {
  return H5Lexists(parent, name.c_str(), H5P_DEFAULT) > 0;
}

std::vector<std::string> members(hid_t group) {
  std::vector<std::string> names;
  const auto add = [](hid_t, const char* name, const H5L_info_t*, void* data) -> herr_t {
    static_cast<std::vector<std::string>*>(data)->emplace_back(name);
    return 0;
  };
  check(H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names), "members");
  return names;
}

void write_attribute(hid_t object, const std::string& name, const std::string& value) {
  const Handle type = text_type();
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, name);
  const Handle attribute(H5Acreate2(object, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                         name);
  const char* text = value.c_str();
  check(H5Awrite(attribute, type, &text), name);
}

void write_attribute(hid_t object, const std::string& name, double value) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, name);
  const Handle attribute(H5Acreate2(object, name.c_str(), H5T_IEEE_F64LE, space, H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose, name);
  check(H5Awrite(attribute, H5T_NATIVE_DOUBLE, &value), name);
}

void write_attribute(hid_t object, const std::string& name, std::int64_t value) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, name);
  const Handle attribute(H5Acreate2(object, name.c_str(), H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose, name);
  check(H5Awrite(attribute, H5T_NATIVE_INT64, &value), name);
}

bool has_attribute(hid_t object, const std::string& name) {
  return H5Aexists(object, name.c_str()) > 0;
}

std::string read_text_attribute(hid_t object, const std::string& name) {
  const Handle attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose, name);
  const Handle stored(H5Aget_type(attribute), H5Tclose, name);
  if (H5Tget_class(stored) != H5T_STRING) throw Hdf5Error(name + " is not text");
  if (H5Tis_variable_str(stored) > 0) {
    const Handle type = text_type();
    char* text = nullptr;
    check(H5Aread(attribute, type, &text), name);
    std::string value = text == nullptr ? "" : text;
    H5free_memory(text);
    return value;
  }
  const std::size_t size = H5Tget_size(stored);
  if (size > (1U << 26)) throw Hdf5Error(name + " is too long");
  std::string value(size, '\0');
  check(H5Aread(attribute, stored, value.data()), name);
  return value.substr(0, value.find('\0'));
}

std::int64_t read_integer_attribute(hid_t object, const std::string& name) {
  const Handle attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose, name);
  const Handle space(H5Aget_space(attribute), H5Sclose, name);
  if (H5Sget_simple_extent_npoints(space) != 1) throw Hdf5Error(name + " is not one number");
  std::int64_t value = 0;
  check(H5Aread(attribute, H5T_NATIVE_INT64, &value), name);
  return value;
}

double read_real_attribute(hid_t object, const std::string& name) {
  const Handle attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose, name);
  const Handle space(H5Aget_space(attribute), H5Sclose, name);
  if (H5Sget_simple_extent_npoints(space) != 1) throw Hdf5Error(name + " is not one number");
  double value = 0;
  check(H5Aread(attribute, H5T_NATIVE_DOUBLE, &value), name);
  return value;
}

std::vector<std::pair<std::string, std::string>> text_attributes(hid_t object) {
  std::vector<std::string> names;
  const auto add = [](hid_t, const char* name, const H5A_info_t*, void* data) -> herr_t {
    static_cast<std::vector<std::string>*>(data)->emplace_back(name);
    return 0;
  };
  check(H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names), "attributes");
  std::vector<std::pair<std::string, std::string>> attributes;
  for (const std::string& name : names) {
    const Handle attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose, name);
    const Handle type(H5Aget_type(attribute), H5Tclose, name);
    if (H5Tget_class(type) == H5T_STRING) attributes.emplace_back(name, read_text_attribute(object, name));
  }
  return attributes;
}

Handle write_dataset(hid_t parent, const std::string& name, const Extents& extents,
                     std::span<const double> values) {
  return write_values(parent, name, extents, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, values.data());
}
Handle write_dataset(hid_t parent, const std::string& name, const Extents& extents,
                     std::span<const float> values) {
  return write_values(parent, name, extents, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, values.data());
}
Handle write_dataset(hid_t parent, const std::string& name, const Extents& extents,
                     std::span<const std::int64_t> values) {
  return write_values(parent, name, extents, H5T_STD_I64LE, H5T_NATIVE_INT64, values.data());
}
Handle write_dataset(hid_t parent, const std::string& name, const Extents& extents,
                     std::span<const std::uint16_t> values) {
  return write_values(parent, name, extents, H5T_STD_U16LE, H5T_NATIVE_UINT16, values.data());
}
Handle write_dataset(hid_t parent, const std::string& name, const std::vector<std::string>& values) {
  std::vector<const char*> texts;
  texts.reserve(values.size());
  for (const std::string& value : values) texts.push_back(value.c_str());
  const Handle type = text_type();
  return write_values(parent, name, {values.size()}, type, type, texts.data());
}

void read_dataset(hid_t parent, const std::string& name, std::span<double> into) {
  read_into(parent, name, H5T_NATIVE_DOUBLE, into.data(), into.size());
}
void read_dataset(hid_t parent, const std::string& name, std::span<float> into) {
  read_into(parent, name, H5T_NATIVE_FLOAT, into.data(), into.size());
}
void read_dataset(hid_t parent, const std::string& name, std::span<std::uint16_t> into) {
  read_into(parent, name, H5T_NATIVE_UINT16, into.data(), into.size());
}

Extents extents_of(hid_t dataset) {
  const Handle space(H5Dget_space(dataset), H5Sclose, "extents");
  const int dimensions = H5Sget_simple_extent_ndims(space);
  Extents extents(static_cast<std::size_t>(std::max(dimensions, 0)));
  if (dimensions > 0) check(H5Sget_simple_extent_dims(space, extents.data(), nullptr), "extents");
  hsize_t count = 1;
  for (const hsize_t extent : extents) {
    if (__builtin_mul_overflow(count, extent, &count) || count > kMostElements)
      throw Hdf5Error("a dataset has an impossible size");
  }
  return extents;
}

std::vector<double> read_reals(hid_t parent, const std::string& name) {
  return read_values<double>(parent, name, H5T_NATIVE_DOUBLE);
}
std::vector<std::int64_t> read_integers(hid_t parent, const std::string& name) {
  return read_values<std::int64_t>(parent, name, H5T_NATIVE_INT64);
}

std::vector<std::string> read_texts(hid_t parent, const std::string& name) {
  const Handle type = text_type();
  const std::vector<char*> texts = read_values<char*>(parent, name, type);
  std::vector<std::string> values;
  for (char* text : texts) {
    values.emplace_back(text == nullptr ? "" : text);
    H5free_memory(text);
  }
  return values;
}

void make_scale(hid_t scale, const std::string& name) {
  check(H5DSset_scale(scale, name.c_str()), name);
}
void attach_scale(hid_t dataset, hid_t scale, unsigned dimension) {
  check(H5DSattach_scale(dataset, scale, dimension), "dimension scale");
}
void flush(hid_t file) {
  check(H5Fflush(file, H5F_SCOPE_GLOBAL), "flush");
}

}  // namespace sinkscope::h5
