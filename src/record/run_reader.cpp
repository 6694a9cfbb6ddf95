// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <sstream>

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/record/h5_growing.hpp"
#include "src/record/run_tables.hpp"

namespace sinkscope {
namespace {

void check_header(hid_t file, const std::string& path) {
  if (!h5::has_attribute(file, "encoding-type") ||
      h5::read_text_attribute(file, "encoding-type") != "sinkscope-run") {
    throw InputError(fmt::format("{} is an HDF5 file but not a record of training runs", path));
  }
  const std::string version = h5::read_text_attribute(file, "encoding-version");
  int major = -1;
  std::from_chars(version.data(), version.data() + version.size(), major);
  if (major != kRunRecordMajor)
    throw InputError(fmt::format("{} has encoding-version {}, wanted {}.x", path, version, kRunRecordMajor));
}

std::size_t rows_of(hid_t group, const std::string& column) {
  const h5::Extents extents = h5::extents_of(h5::open_dataset(group, column));
  if (extents.empty()) throw h5::Hdf5Error(column + " has no rows");
  return extents[0];
}

// Cuts an array [rows, ...] into its rows of so many elements. It may have grown since they were counted.
template <typename Assign>
void read_array(hid_t group, const std::string& column, std::size_t rows, std::int64_t elements,
                const Assign& assign) {
  const auto of_row = static_cast<std::size_t>(elements);
  const std::vector<double> values = h5::read_reals(group, column);
  if (values.size() < rows * of_row || (of_row != 0 && values.size() % of_row != 0)) {
    throw h5::Hdf5Error(
        fmt::format("{} has {} numbers, wanted {} for each of {} rows", column, values.size(), of_row, rows));
  }
  for (std::size_t i = 0; i < rows; ++i) {
    const auto start = values.begin() + static_cast<std::ptrdiff_t>(i * of_row);
    assign(i, std::vector<double>(start, start + static_cast<std::ptrdiff_t>(of_row)));
  }
}

// A crash can come between two columns of a row: rows are those that every column has.
template <typename Row>
std::size_t complete_rows(hid_t group, const Columns<Row>& columns) {
  std::vector<std::string> names;
  for (const auto& column : columns.integers) names.emplace_back(column.name);
  for (const auto& column : columns.reals) names.emplace_back(column.name);
  for (const auto& column : columns.texts) names.emplace_back(column.name);
  for (const auto& column : columns.heads) names.emplace_back(column.name);
  for (const auto& column : columns.blocks) {
    for (const BlockPart& part : kBlockParts) names.push_back(fmt::format("{}_{}", part.name, column.name));
    names.push_back(fmt::format("outside_{}", column.name));
  }
  std::size_t rows = rows_of(group, names.front());
  for (const std::string& name : names) rows = std::min(rows, rows_of(group, name));
  return rows;
}

template <typename Row>
void read_table(hid_t run, const Columns<Row>& columns, TrainingRun& into) {
  const h5::Handle group = h5::open_group(run, columns.table);
  std::vector<Row>& rows = into.*columns.rows;
  rows.resize(complete_rows(group, columns));
  for (const auto& column : columns.integers) {
    const std::vector<std::int64_t> values = h5::read_integers(group, column.name);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i].*column.value = values.at(i);
  }
  for (const auto& column : columns.reals) {
    const std::vector<double> values = h5::read_reals(group, column.name);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i].*column.value = values.at(i);
  }
  for (const auto& column : columns.texts) {
    const std::vector<std::string> values = h5::read_fixed_texts(group, column.name);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i].*column.value = values.at(i);
  }
  for (const auto& column : columns.heads) {
    read_array(group, column.name, rows.size(), into.shape.layers * into.shape.hq,
               [&](std::size_t i, std::vector<double>&& row) { rows[i].*column.value = std::move(row); });
  }
  for (const auto& column : columns.blocks) {
    for (const BlockPart& part : kBlockParts) {
      read_array(group, fmt::format("{}_{}", part.name, column.name), rows.size(),
                 into.shape.layers * heads_of(part, into.shape),
                 [&](std::size_t i, std::vector<double>&& row) {
                   (rows[i].*column.value).*part.values = std::move(row);
                 });
    }
    const std::vector<double> outside = h5::read_reals(group, fmt::format("outside_{}", column.name));
    for (std::size_t i = 0; i < rows.size(); ++i) (rows[i].*column.value).outside = outside.at(i);
  }
}

TrainingRun read_run(hid_t runs, const std::string& name) {
  const h5::Handle group = h5::open_group(runs, name);
  TrainingRun run;
  run.name = name;
  run.training_path = h5::read_text_attribute(group, "training_path");
  run.rollout_path = h5::read_text_attribute(group, "rollout_path");
  if (h5::has_attribute(group, "phase_paths")) {  // since 1.1
    std::istringstream paths(h5::read_text_attribute(group, "phase_paths"));
    for (std::string path; paths >> path;) run.phase_paths.push_back(path);
  }
  const h5::Handle steps = h5::open_group(group, kStepColumns.table);
  run.shape = {static_cast<std::int64_t>(rows_of(steps, "layer")),
               static_cast<std::int64_t>(rows_of(steps, "head")),
               static_cast<std::int64_t>(rows_of(steps, "kv_head"))};
  read_table(group, kStepColumns, run);
  read_table(group, kReplayColumns, run);
  read_table(group, kSpikeColumns, run);
  read_table(group, kCauseColumns, run);
  return run;
}

template <typename Row>
void truncate_rows(std::vector<Row>& rows, std::int64_t step) {
  std::erase_if(rows, [&](const Row& row) { return row.step >= step; });
}

}  // namespace

RunRecord read_run_record(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    throw InputError(fmt::format("record {} does not exist or is no file", path));
  try {
    const h5::Handle file = h5::open_growing_file(path);
    check_header(file, path);
    RunRecord record;
    for (auto& [name, value] : h5::text_attributes(file)) record.attributes[name] = value;
    record.complete = h5::has_attribute(file, "complete");
    const h5::Handle runs = h5::open_group(file, "runs");
    const std::vector<std::string> names = h5::members(runs);
    record.runs.resize(names.size());
    for (const std::string& name : names) {
      const auto index =
          static_cast<std::size_t>(h5::read_integer_attribute(h5::open_group(runs, name), "index"));
      record.runs.at(index) = read_run(runs, name);
    }
    return record;
  } catch (const h5::Hdf5Error& hdf5) {
    throw InputError(fmt::format("{} cannot be read as a record of training runs: {}", path, hdf5.what()));
  } catch (const std::out_of_range&) {
    throw InputError(
        fmt::format("{} cannot be read as a record of training runs: its parts do not fit", path));
  }
}

void truncate(TrainingRun& run, std::int64_t step) {
  truncate_rows(run.steps, step);
  truncate_rows(run.replays, step);
  truncate_rows(run.spikes, step);
  truncate_rows(run.causes, step);
}

}  // namespace sinkscope
