// SPDX-License-Identifier: Apache-2.0
// A thin layer over HDF5's C interface: handles that close themselves, and the few reads and writes that a
// record needs. Every failure is an Hdf5Error with HDF5's own innermost reason.
#pragma once

#include <cstdint>
#include <hdf5.h>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace sinkscope::h5 {

struct Hdf5Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An identifier of any kind, closed by the function that fits it. Throws Hdf5Error when `id` is negative.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t), const std::string& what);
  ~Handle();
  Handle(Handle&& other) noexcept;
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  Handle& operator=(Handle&&) = delete;
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

using Extents = std::vector<hsize_t>;

// "1.10.8": of the library that is loaded.
std::string version();

Handle create_file(const std::string& path);
Handle open_file(const std::string& path);
Handle create_group(hid_t parent, const std::string& name);
Handle open_group(hid_t parent, const std::string& name);
Handle open_dataset(hid_t parent, const std::string& name);
bool exists(hid_t parent, const std::string& name);
std::vector<std::string> members(hid_t group);

// Throws Hdf5Error with the innermost reason when `status` is negative.
void check(herr_t status, const std::string& what);

void write_attribute(hid_t object, const std::string& name, const std::string& value);
void write_attribute(hid_t object, const std::string& name, double value);
void write_attribute(hid_t object, const std::string& name, std::int64_t value);
bool has_attribute(hid_t object, const std::string& name);
std::string read_text_attribute(hid_t object, const std::string& name);
std::int64_t read_integer_attribute(hid_t object, const std::string& name);
double read_real_attribute(hid_t object, const std::string& name);
std::vector<std::pair<std::string, std::string>> text_attributes(hid_t object);

// Chunked, shuffled, compressed and checksummed datasets (scalars and empty ones are stored plainly).
Handle write_dataset(hid_t parent, const std::string& name, const Extents& extents,
                     std::span<const double> values);
Handle write_dataset(hid_t parent, const std::string& name, const Extents& extents,
                     std::span<const float> values);
Handle write_dataset(hid_t parent, const std::string& name, const Extents& extents,
                     std::span<const std::int64_t> values);
Handle write_dataset(hid_t parent, const std::string& name, const Extents& extents,
                     std::span<const std::uint16_t> values);
Handle write_dataset(hid_t parent, const std::string& name, const std::vector<std::string>& values);

// Into as many elements as the dataset has, bit for bit where it is stored in that type.
void read_dataset(hid_t parent, const std::string& name, std::span<double> into);
void read_dataset(hid_t parent, const std::string& name, std::span<float> into);
void read_dataset(hid_t parent, const std::string& name, std::span<std::uint16_t> into);
Extents extents_of(hid_t dataset);

std::vector<double> read_reals(hid_t parent, const std::string& name);
std::vector<std::int64_t> read_integers(hid_t parent, const std::string& name);
std::vector<std::string> read_texts(hid_t parent, const std::string& name);

// Makes `scale` a dimension scale and attaches it to a dataset's dimension.
void make_scale(hid_t scale, const std::string& name);
void attach_scale(hid_t dataset, hid_t scale, unsigned dimension);

void flush(hid_t file);

}  // namespace sinkscope::h5
