// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "src/record/h5_growing.hpp"
#include "src/record/run_tables.hpp"

namespace sinkscope {
namespace {

namespace fs = std::filesystem;
using h5::Growing;

void write_axis(hid_t parent, const char* name, std::int64_t count) {
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  h5::make_scale(h5::write_dataset(parent, name, {numbers.size()}, numbers), name);
}

// One table of a run in the file: a growing dataset per column.
template <typename Row>
class Table {
 public:
  Table(hid_t run, const Columns<Row>& columns, const RunShape& shape)
      : columns_(columns), group_(h5::create_group(run, columns.table)) {
    for (const auto& column : columns.integers) add_column(column, column.name, Growing::Kind::kInteger);
    for (const auto& column : columns.reals) add_column(column, column.name, Growing::Kind::kReal);
    for (const auto& column : columns.texts) add_column(column, column.name, Growing::Kind::kText);
    if (!columns.heads.empty() || !columns.blocks.empty()) {
      write_axis(group_, "layer", shape.layers);
      write_axis(group_, "head", shape.hq);
      write_axis(group_, "kv_head", shape.hkv);
    }
    for (const auto& column : columns.heads)
      add_column(column, column.name, Growing::Kind::kReal, {"layer", "head"});
    for (const auto& column : columns.blocks) {
      for (const BlockPart& part : kBlockParts) {
        std::vector<std::string> axes = {"layer"};
        if (part.heads != nullptr) axes.emplace_back(part.axis);
        add_column(column, fmt::format("{}_{}", part.name, column.name), Growing::Kind::kReal, axes);
      }
      add_column(column, fmt::format("outside_{}", column.name), Growing::Kind::kReal);
    }
  }

  void append(const Row& row) {
    std::size_t at = 0;
    for (const auto& column : columns_.integers) datasets_[at++].append(std::span(&(row.*column.value), 1));
    for (const auto& column : columns_.reals) datasets_[at++].append(std::span(&(row.*column.value), 1));
    for (const auto& column : columns_.texts) datasets_[at++].append(std::vector{row.*column.value});
    for (const auto& column : columns_.heads) append_array(datasets_[at++], row.*column.value);
    for (const auto& column : columns_.blocks) {
      const BlockValues& blocks = row.*column.value;
      for (const BlockPart& part : kBlockParts) append_array(datasets_[at++], blocks.*part.values);
      datasets_[at++].append(std::span(&blocks.outside, 1));
    }
  }

 private:
  void add_column(const typename Columns<Row>::Of& of, const std::string& name, Growing::Kind kind,
                  const std::vector<std::string>& axes = {}) {
    h5::Extents row;
    for (const std::string& axis : axes) row.push_back(h5::extents_of(h5::open_dataset(group_, axis)).at(0));
    std::size_t elements = 1;
    for (const hsize_t extent : row) elements *= extent;
    const Growing& dataset = datasets_.emplace_back(group_, name, kind, row);
    sizes_.push_back(elements);
    h5::write_attribute(dataset.dataset(), "units", std::string(of.units));
    h5::write_attribute(dataset.dataset(), "long_name", std::string(of.meaning));
    if (name == "step") {
      h5::make_scale(dataset.dataset(), name);
    } else {
      h5::attach_scale(dataset.dataset(), h5::open_dataset(group_, "step"), 0);
    }
    for (std::size_t i = 0; i < axes.size(); ++i)
      h5::attach_scale(dataset.dataset(), h5::open_dataset(group_, axes[i]), static_cast<unsigned>(i + 1));
  }

  // What was not observed is empty, and NaN in the file.
  void append_array(Growing& dataset, const std::vector<double>& values) {
    const std::size_t wanted = sizes_[static_cast<std::size_t>(&dataset - datasets_.data())];
    if (values.empty()) {
      dataset.append(std::vector<double>(wanted, std::numeric_limits<double>::quiet_NaN()));
      return;
    }
    if (values.size() != wanted)
      throw std::logic_error(fmt::format("{} numbers for {} elements of a row", values.size(), wanted));
    dataset.append(values);
  }

  const Columns<Row>& columns_;
  h5::Handle group_;
  std::vector<Growing> datasets_;
  std::vector<std::size_t> sizes_;  // elements of a row
};

struct RunTables {
  RunTables(hid_t group, const RunShape& shape)
      : steps(group, kStepColumns, shape),
        replays(group, kReplayColumns, shape),
        spikes(group, kSpikeColumns, shape),
        causes(group, kCauseColumns, shape) {}
  Table<StepRow> steps;
  Table<ReplayRow> replays;
  Table<SpikeRow> spikes;
  Table<CauseRow> causes;
};

void refuse_what_is_there(const std::string& path, bool overwrite) {
  std::error_code error;
  if (fs::exists(path, error) && !overwrite)
    throw InputError(fmt::format("{} exists already; --overwrite replaces it", path));
}

}  // namespace

std::string partial_run_record(const std::string& path) {
  return path + ".partial";
}

struct RunWriter::State {
  // Any failure of HDF5 here is the file's: a full disk, a closed folder.
  template <typename Body>
  void guarded(const Body& body) {
    try {
      body();
    } catch (const h5::Hdf5Error& error) {
      throw EnvironmentError(
          fmt::format("{} could not be written (is the disk full?): {}", path, error.what()));
    }
  }

  std::string path;
  std::optional<h5::Handle> file;
  std::vector<RunTables> runs;
};

RunWriter::RunWriter(const std::string& path, const RunInfo& info, const std::vector<TrainingRun>& runs,
                     bool overwrite)
    : state_(std::make_unique<State>()) {
  refuse_what_is_there(path, overwrite);
  state_->path = path;
  // The rows that are there already are complete before the partial record is replaced: it may hold the same.
  PendingFile start(partial_run_record(path), true);
  state_->guarded([&] {
    state_->file.emplace(h5::create_growing_file(start.temporary_path()));
    const hid_t file = *state_->file;
    h5::write_attribute(file, "encoding-type", std::string("sinkscope-run"));
    h5::write_attribute(file, "encoding-version", fmt::format("{}.{}", kRunRecordMajor, kRunRecordMinor));
    for (const auto& [name, value] : info) h5::write_attribute(file, name, value);
    const h5::Handle groups = h5::create_group(file, "runs");
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const h5::Handle group = h5::create_group(groups, runs[i].name);
      h5::write_attribute(group, "index", static_cast<std::int64_t>(i));
      h5::write_attribute(group, "training_path", runs[i].training_path);
      h5::write_attribute(group, "rollout_path", runs[i].rollout_path);
      h5::write_attribute(group, "phase_paths", fmt::format("{}", fmt::join(runs[i].phase_paths, " ")));
      state_->runs.emplace_back(group, runs[i].shape);
    }
    h5::let_readers_in(file);
    for (std::size_t i = 0; i < runs.size(); ++i) {
      for (const StepRow& row : runs[i].steps) state_->runs[i].steps.append(row);
      for (const ReplayRow& row : runs[i].replays) state_->runs[i].replays.append(row);
      for (const SpikeRow& row : runs[i].spikes) state_->runs[i].spikes.append(row);
      for (const CauseRow& row : runs[i].causes) state_->runs[i].causes.append(row);
    }
    h5::flush(file);
  });
  start.commit();
}

RunWriter::~RunWriter() = default;

void RunWriter::add(std::size_t run, const StepRow& row) {
  state_->guarded([&] {
    state_->runs.at(run).steps.append(row);
    h5::flush(*state_->file);
  });
}

void RunWriter::add(std::size_t run, const std::vector<ReplayRow>& rows) {
  state_->guarded([&] {
    for (const ReplayRow& row : rows) state_->runs.at(run).replays.append(row);
    h5::flush(*state_->file);
  });
}

void RunWriter::add(std::size_t run, const SpikeRow& row, const std::vector<CauseRow>& causes) {
  state_->guarded([&] {
    state_->runs.at(run).spikes.append(row);
    for (const CauseRow& cause : causes) state_->runs.at(run).causes.append(cause);
    h5::flush(*state_->file);
  });
}

void RunWriter::finish() {
  const std::string partial = partial_run_record(state_->path);
  state_->guarded([&] {
    state_->runs.clear();
    state_->file.reset();
    const h5::Handle file = h5::open_closed_file(partial);
    h5::write_attribute(file, "complete", std::int64_t{1});
    h5::flush(file);  // a disk that is full now shows here: closing has no say
  });
  put_in_place(partial, state_->path);
}

}  // namespace sinkscope
