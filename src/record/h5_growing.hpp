// SPDX-License-Identifier: Apache-2.0
// Files that grow row by row while others read them: HDF5's single writer, multiple readers (SWMR). What was flushed can
// be read at any time, and after a crash as well.
#pragma once

#include <string>
#include <vector>

#include "src/record/h5.hpp"

namespace sinkscope::h5 {

// Of a text in a column: SWMR knows no texts of variable length. Enough for a folder's and a file's name.
inline constexpr std::size_t kMostCharacters = 511;

Handle create_growing_file(const std::string& path);
// For reading, whether it is still being written, was left by a crash, or is finished.
Handle open_growing_file(const std::string& path);
// For changing what a writer closed: adds attributes.
Handle open_closed_file(const std::string& path);

// From here on others can read the file; no group, dataset or attribute can be added any more.
void let_readers_in(hid_t file);

// Rows of numbers or texts. `row` is the shape of one row: {} for one number. Appends any number of rows.
class Growing {
 public:
  enum class Kind { kReal, kInteger, kText };
  Growing(hid_t parent, const std::string& name, Kind kind, Extents row);
  hid_t dataset() const { return dataset_; }
  void append(std::span<const double> values);
  void append(std::span<const std::int64_t> values);
  // Throws Hdf5Error for a text that is longer than kMostCharacters.
  void append(const std::vector<std::string>& values);

 private:
  void append_rows(std::size_t count, hid_t memory_type, const void* values);
  std::string name_;
  Extents row_;
  hsize_t rows_ = 0;
  Handle dataset_;
};

std::vector<std::string> read_fixed_texts(hid_t parent, const std::string& name);

}  // namespace sinkscope::h5
