// SPDX-License-Identifier: Apache-2.0
#include "src/record/h5_growing.hpp"

#include <algorithm>

namespace sinkscope::h5 {
namespace {

// 32 KiB, rewritten whole at every flush. No filter: while a chunk is written over, and where a crash cuts that short, what
// it had before can still be read, which the checksum of a filter would refuse.
constexpr hsize_t kChunkElements = 4096;
constexpr hsize_t kMostChunkRows = 64;

// Of the operating system: what lies within one is written whole or not at all when the process is killed.
constexpr hsize_t kPageBytes = 4096;

// Of a piece of the file's structure whose checksum is wrong, which a writer may just be putting right. HDF5 waits between them
// 1 ns, 2 ns, 4 ns and so on: 70 ms in all, where its own 100 would outlast us.
constexpr unsigned kReadAttempts = 26;

Handle latest_format() {
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "file access");
  check(H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST), "file access");
  return access;
}

Handle within_pages() {
  Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "file creation");
  check(H5Pset_file_space_strategy(creation, H5F_FSPACE_STRATEGY_PAGE, false, 1), "file space");
  check(H5Pset_file_space_page_size(creation, kPageBytes), "file space");
  return creation;
}

Handle fixed_text() {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "text type");
  check(H5Tset_size(type, kMostCharacters + 1), "text type");
  check(H5Tset_cset(type, H5T_CSET_UTF8), "text type");
  return type;
}

hsize_t product(const Extents& extents) {
  hsize_t count = 1;
  for (const hsize_t extent : extents) count *= extent;
  return count;
}

Handle create_dataset(hid_t parent, const std::string& name, Growing::Kind kind, const Extents& row) {
  Extents now = {0}, most = {H5S_UNLIMITED};
  Extents chunk = {
      std::clamp<hsize_t>(kChunkElements / std::max<hsize_t>(1, product(row)), 1, kMostChunkRows)};
  for (const hsize_t extent : row) {
    for (Extents* extents : {&now, &most, &chunk}) extents->push_back(extent);
  }
  const Handle space(H5Screate_simple(static_cast<int>(now.size()), now.data(), most.data()), H5Sclose, name);
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, name);
  check(H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data()), name);
  const Handle text = fixed_text();
  const hid_t types[] = {H5T_IEEE_F64LE, H5T_STD_I64LE, text};
  return {H5Dcreate2(parent, name.c_str(), types[static_cast<int>(kind)], space, H5P_DEFAULT, properties,
                     H5P_DEFAULT),
          H5Dclose, name};
}

}  // namespace

Handle create_growing_file(const std::string& path) {
  static_cast<void>(version());  // prepares the library
  return {H5Fcreate(path.c_str(), H5F_ACC_TRUNC, within_pages(), latest_format()), H5Fclose, path};
}

Handle open_growing_file(const std::string& path) {
  static_cast<void>(version());
  const Handle access = latest_format();
  check(H5Pset_metadata_read_attempts(access, kReadAttempts), "file access");
  return {H5Fopen(path.c_str(), H5F_ACC_RDONLY | H5F_ACC_SWMR_READ, access), H5Fclose, path};
}

Handle open_closed_file(const std::string& path) {
  return {H5Fopen(path.c_str(), H5F_ACC_RDWR, latest_format()), H5Fclose, path};
}

void let_readers_in(hid_t file) {
  check(H5Fstart_swmr_write(file), "single writer, multiple readers");
}

Growing::Growing(hid_t parent, const std::string& name, Kind kind, Extents row)
    : name_(name), row_(std::move(row)), dataset_(create_dataset(parent, name, kind, row_)) {}

void Growing::append(std::span<const double> values) {
  append_rows(values.size(), H5T_NATIVE_DOUBLE, values.data());
}

void Growing::append(std::span<const std::int64_t> values) {
  append_rows(values.size(), H5T_NATIVE_INT64, values.data());
}

void Growing::append(const std::vector<std::string>& values) {
  std::string characters;
  for (const std::string& value : values) {
    if (value.size() > kMostCharacters)
      throw Hdf5Error(name_ + " has a text of more than " + std::to_string(kMostCharacters) +
                      " bytes: " + value);
    const std::size_t end = characters.size() + kMostCharacters + 1;
    characters += value;
    characters.resize(end);
  }
  append_rows(values.size(), fixed_text(), characters.data());
}

void Growing::append_rows(std::size_t count, hid_t memory_type, const void* values) {
  const hsize_t of_row = product(row_);
  if (of_row == 0 || count == 0) return;
  if (count % of_row != 0) throw Hdf5Error(name_ + " got a part of a row");
  Extents extents = {rows_ + count / of_row}, start = {rows_}, added = {count / of_row};
  for (const hsize_t extent : row_) {
    extents.push_back(extent);
    start.push_back(0);
    added.push_back(extent);
  }
  check(H5Dset_extent(dataset_, extents.data()), name_);
  const Handle file_space(H5Dget_space(dataset_), H5Sclose, name_);
  check(H5Sselect_hyperslab(file_space, H5S_SELECT_SET, start.data(), nullptr, added.data(), nullptr), name_);
  const Handle memory_space(H5Screate_simple(static_cast<int>(added.size()), added.data(), nullptr), H5Sclose,
                            name_);
  check(H5Dwrite(dataset_, memory_type, memory_space, file_space, H5P_DEFAULT, values), name_);
  rows_ = extents[0];
}

std::vector<std::string> read_fixed_texts(hid_t parent, const std::string& name) {
  const Handle dataset = open_dataset(parent, name);
  const Extents extents = extents_of(dataset);
  if (extents.size() != 1) throw Hdf5Error(name + " is not one text per row");
  std::string characters(extents[0] * (kMostCharacters + 1), '\0');
  if (!characters.empty())
    check(H5Dread(dataset, fixed_text(), H5S_ALL, H5S_ALL, H5P_DEFAULT, characters.data()), name);
  std::vector<std::string> texts;
  for (std::size_t at = 0; at < characters.size(); at += kMostCharacters + 1)
    texts.emplace_back(&characters[at]);
  return texts;
}

}  // namespace sinkscope::h5
