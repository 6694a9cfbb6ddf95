// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <optional>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/core/error.hpp"
#include "src/core/file.hpp"
#include "src/record/findings.hpp"
#include "src/record/h5.hpp"
#include "src/record/record.hpp"
#include "src/record/sidecar.hpp"
#include "src/torch/module.hpp"

namespace sinkscope {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::vector<std::int64_t> counting(std::int64_t count) {
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

const TensorMetrics* find_metrics(const PathResult& path, TensorName tensor) {
  for (const TensorMetrics& metrics : path.metrics) {
    if (metrics.tensor == tensor) return &metrics;
  }
  return nullptr;
}

// The group of one tensor: its dimension scales, and one dataset per metric.
class TensorGroup {
 public:
  TensorGroup(hid_t problem, const CaseResult& result, TensorName tensor)
      : result_(result), tensor_(tensor), group_(h5::create_group(problem, std::string(text(tensor)))) {
    const bool of_keys = is_of_keys(tensor);
    const bool batched = tensor != TensorName::kDsinks;
    const AttentionShape& s = result.shape;
    heads_ = static_cast<std::size_t>((batched ? s.b : 1) * (of_keys ? s.hkv : s.hq));
    std::vector<std::string> paths;
    for (const PathResult& path : result.paths) paths.push_back(path.path);
    add_scale("path", h5::write_dataset(group_, "path", paths), paths.size());
    if (batched) add_scale("batch", counting(s.b));
    add_scale(of_keys ? "kv_head" : "head", counting(of_keys ? s.hkv : s.hq));
  }

  void write() {
    for (const MetricInfo& metric : all_metrics()) {
      std::vector<double> values;
      for (const PathResult& path : result_.paths) {
        const TensorMetrics* metrics = find_metrics(path, tensor_);
        for (std::size_t head = 0; head < heads_; ++head) {
          values.push_back(metrics == nullptr ? kNaN : metric.value(metrics->heads.at(head)));
        }
      }
      const h5::Handle dataset = h5::write_dataset(group_, std::string(metric.name), extents_, values);
      h5::write_attribute(dataset, "units", std::string(metric.unit));
      h5::write_attribute(dataset, "long_name", std::string(metric.meaning));
      attach(dataset);
    }
    write_profile();
  }

 private:
  void add_scale(const char* name, const std::vector<std::int64_t>& numbers) {
    add_scale(name, h5::write_dataset(group_, name, {numbers.size()}, numbers), numbers.size());
  }
  void add_scale(const char* name, h5::Handle scale, std::size_t extent) {
    h5::make_scale(scale, name);
    scales_.push_back(std::move(scale));
    extents_.push_back(extent);
  }
  void attach(hid_t dataset) const {
    for (std::size_t i = 0; i < scales_.size(); ++i)
      h5::attach_scale(dataset, scales_[i], static_cast<unsigned>(i));
  }

  void write_profile() {
    std::vector<float> values;
    for (const PathResult& path : result_.paths) {
      const TensorMetrics* metrics = find_metrics(path, tensor_);
      for (std::size_t head = 0; head < heads_; ++head) {
        for (std::size_t bin = 0; bin < kProfileBins; ++bin) {
          values.push_back(metrics == nullptr ? static_cast<float>(kNaN)
                                              : metrics->heads.at(head).profile[bin]);
        }
      }
    }
    add_scale("bin", counting(kProfileBins));
    const h5::Handle dataset = h5::write_dataset(group_, "profile", extents_, values);
    h5::write_attribute(dataset, "units", std::string("u sigma"));
    h5::write_attribute(dataset, "long_name",
                        std::string("root mean square of z over 16 equal ranges of positions"));
    attach(dataset);
  }

  const CaseResult& result_;
  TensorName tensor_;
  h5::Handle group_;
  std::size_t heads_ = 0;
  std::vector<h5::Handle> scales_;
  h5::Extents extents_;
};

void write_facts(hid_t problem, const HeadFacts& facts) {
  const h5::Handle group = h5::create_group(problem, "heads");
  const std::vector<std::int64_t> batches = counting(facts.b), heads = counting(facts.hq);
  const h5::Handle batch = h5::write_dataset(group, "batch", {batches.size()}, batches);
  const h5::Handle head = h5::write_dataset(group, "head", {heads.size()}, heads);
  h5::make_scale(batch, "batch");
  h5::make_scale(head, "head");
  const std::pair<const char*, const std::vector<double>*> columns[] = {
      {"p_sink_mean", &facts.p_sink_mean},
      {"p_sink_max", &facts.p_sink_max},
      {"predicted_gain", &facts.predicted_gain},
      {"lse_min", &facts.lse_min},
      {"lse_max", &facts.lse_max},
      {"entropy", &facts.entropy}};
  for (const auto& [name, values] : columns) {
    const h5::Handle dataset = h5::write_dataset(group, name, {batches.size(), heads.size()}, *values);
    h5::attach_scale(dataset, batch, 0);
    h5::attach_scale(dataset, head, 1);
  }
}

// What each path was and what is said of it, in the order of the `path` scales.
void write_paths(hid_t problem, const CaseResult& result) {
  const h5::Handle group = h5::create_group(problem, "paths");
  std::vector<std::string> names, backends, sentences;
  std::vector<std::int64_t> judged;
  for (const PathResult& path : result.paths) {
    names.push_back(path.path);
    backends.push_back(path.backend);
    judged.push_back(path.judged ? 1 : 0);
    std::string joined;
    for (const std::string& sentence : path.sentences) joined += (joined.empty() ? "" : "\n") + sentence;
    sentences.push_back(joined);
  }
  const h5::Handle scale = h5::write_dataset(group, "path", names);
  h5::make_scale(scale, "path");
  const h5::Handle backend = h5::write_dataset(group, "backend", backends);
  const h5::Handle judged_set = h5::write_dataset(group, "judged", {judged.size()}, judged);
  const h5::Handle sentence = h5::write_dataset(group, "sentences", sentences);
  for (const h5::Handle* dataset : {&backend, &judged_set, &sentence}) h5::attach_scale(*dataset, scale, 0);
}

// A tensor in its own format; 16-bit floats as their bits.
void write_tensor(hid_t group, const std::string& name, const Tensor& tensor) {
  if (!tensor.given()) return;
  const h5::Extents extents(tensor.shape().begin(), tensor.shape().end());
  const DType dtype = tensor.dtype();
  std::optional<h5::Handle> dataset;
  if (dtype == DType::kBf16 || dtype == DType::kFp16) {
    dataset.emplace(h5::write_dataset(group, name, extents, tensor.as<std::uint16_t>()));
  } else if (dtype == DType::kFp32) {
    dataset.emplace(h5::write_dataset(group, name, extents, tensor.as<float>()));
  } else {
    dataset.emplace(h5::write_dataset(group, name, extents, std::span<const double>(tensor.widened())));
  }
  h5::write_attribute(*dataset, "format", std::string(name_of(dtype)));
}

void write_tensors(hid_t problem, const CaseResult& result, const Case& c) {
  const h5::Handle group = h5::create_group(problem, "tensors");
  const h5::Handle inputs = h5::create_group(group, "inputs");
  const Tensor& dout = c.padded_dout.given() ? c.padded_dout : c.dout;
  const Tensor& dlse = c.padded_dlse.given() ? c.padded_dlse : c.dlse;
  const std::pair<const char*, const Tensor*> tensors[] = {
      {"q", &c.q}, {"k", &c.k}, {"v", &c.v}, {"sinks", &c.sinks}, {"dout", &dout}, {"dlse", &dlse}};
  for (const auto& [name, tensor] : tensors) write_tensor(inputs, name, *tensor);
  for (const PathResult& path : result.paths) {
    const h5::Handle outputs = h5::create_group(group, path.path);
    for (const TensorName name : kTensorNames)
      write_tensor(outputs, std::string(text(name)), path.outputs[name]);
  }
}

// One member of every row.
template <typename T, typename Member>
std::vector<T> column(const std::vector<VerdictRow>& rows, const Member& member) {
  std::vector<T> values;
  values.reserve(rows.size());
  for (const VerdictRow& row : rows) values.push_back(member(row));
  return values;
}

void write_verdicts(hid_t file, const std::vector<VerdictRow>& rows) {
  const h5::Handle group = h5::create_group(file, "verdicts");
  const auto texts = [&](const char* name, auto member) {
    h5::write_dataset(group, name, column<std::string>(rows, member));
  };
  const auto integers = [&](const char* name, auto member) {
    h5::write_dataset(group, name, {rows.size()}, column<std::int64_t>(rows, member));
  };
  const auto reals = [&](const char* name, auto member) {
    h5::write_dataset(group, name, {rows.size()}, column<double>(rows, member));
  };
  texts("problem", [](const VerdictRow& r) { return r.problem; });
  texts("path", [](const VerdictRow& r) { return r.path; });
  texts("tensor", [](const VerdictRow& r) { return r.tensor; });
  texts("verdict", [](const VerdictRow& r) { return std::string(text(r.verdict)); });
  texts("metric", [](const VerdictRow& r) { return r.metric; });
  texts("reason", [](const VerdictRow& r) { return r.reason; });
  texts("repro", [](const VerdictRow& r) { return r.repro; });
  integers("judged", [](const VerdictRow& r) { return std::int64_t{r.judged}; });
  integers("batch", [](const VerdictRow& r) { return r.batch; });
  integers("head", [](const VerdictRow& r) { return r.head; });
  integers("row", [](const VerdictRow& r) { return r.row; });
  integers("column", [](const VerdictRow& r) { return r.column; });
  integers("failed_heads", [](const VerdictRow& r) { return r.failed_heads; });
  reals("value", [](const VerdictRow& r) { return r.value; });
  reals("limit", [](const VerdictRow& r) { return r.limit; });
}

void write_problem(hid_t problems, const CaseResult& result, const Case* saved) {
  const h5::Handle problem = h5::create_group(problems, result.name);
  const AttentionShape& s = result.shape;
  h5::write_attribute(problem, "problem", result.problem_line);
  h5::write_attribute(problem, "seed", std::to_string(result.seed));
  h5::write_attribute(problem, "inputs_sha256", result.inputs_sha256);
  h5::write_attribute(problem, "dtype", std::string(name_of(s.dtype)));
  const std::pair<const char*, std::int64_t> numbers[] = {
      {"b", s.b},   {"hq", s.hq}, {"hkv", s.hkv},       {"sq", s.sq},
      {"sk", s.sk}, {"d", s.d},   {"causal", s.causal}, {"window", s.window}};
  for (const auto& [name, number] : numbers) h5::write_attribute(problem, name, number);
  h5::write_attribute(problem, "scale", s.scale);
  for (const auto& [name, lengths] :
       {std::pair{"docs", &s.docs}, {"docs_k", &s.docs_k}, {"seqlens", &s.seqlens}}) {
    if (!lengths->empty()) h5::write_attribute(problem, name, fmt::format("{}", fmt::join(*lengths, " ")));
  }
  for (const char* key : kCaptureAttributes) {
    const auto found = result.metadata.find(key);
    if (found != result.metadata.end()) h5::write_attribute(problem, key, found->second);
  }
  write_paths(problem, result);
  write_facts(problem, result.facts);
  write_findings(problem, result);
  for (const TensorName tensor : kTensorNames) TensorGroup(problem, result, tensor).write();
  if (saved != nullptr) write_tensors(problem, result, *saved);
}

}  // namespace

struct RecordWriter::State {
  State(const std::string& path, bool overwrite) : pending(path, overwrite) {
    sidecar.emplace(path + ".partial.jsonl", true);
  }

  // Turns HDF5's complaint into the sentence that a person needs.
  template <typename Body>
  void guarded(Body body) {
    try {
      body();
    } catch (const h5::Hdf5Error& error) {
      problems.reset();
      file.reset();
      throw EnvironmentError(
          fmt::format("{} could not be written (is the disk full?): {}", pending.final_path(), error.what()));
    }
  }

  PendingFile pending;
  std::optional<PendingFile> sidecar;  // never committed: removed at the end, a crash leaves it
  std::ofstream sidecar_stream;
  std::optional<h5::Handle> file;
  std::optional<h5::Handle> problems;
  std::vector<VerdictRow> verdicts;
};

RecordWriter::RecordWriter(const std::string& path, const RunInfo& info, const Gate& gate, bool overwrite)
    : state_(std::make_unique<State>(path, overwrite)) {
  state_->sidecar_stream.open(state_->sidecar->temporary_path(), std::ios::binary);
  state_->guarded([&] {
    state_->file.emplace(h5::create_file(state_->pending.temporary_path()));
    const hid_t file = *state_->file;
    h5::write_attribute(file, "encoding-type", std::string("sinkscope-record"));
    h5::write_attribute(file, "encoding-version", fmt::format("{}.{}", kRecordMajor, kRecordMinor));
    for (const auto& [name, value] : info) {
      if (name != "torch") h5::write_attribute(file, name, value);
    }
    h5::write_attribute(file, "gate", to_toml(gate));
    h5::write_attribute(file, "gate_name", gate.name);
    state_->problems.emplace(h5::create_group(file, "problems"));
  });
}

RecordWriter::~RecordWriter() = default;

void RecordWriter::add(const CaseResult& result, const Case* saved) {
  for (const PathResult& path : result.paths) {
    for (const VerdictRow& row : path.verdicts) {
      state_->verdicts.push_back(row);
      state_->sidecar_stream << json_of(row).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                             << '\n';
    }
  }
  state_->sidecar_stream.flush();
  state_->guarded([&] {
    write_problem(*state_->problems, result, saved);
    h5::flush(*state_->file);
  });
}

void RecordWriter::finish() {
  state_->guarded([&] {
    write_verdicts(*state_->file, state_->verdicts);
    // Known only now: libtorch is loaded by the first path that needs it.
    h5::write_attribute(*state_->file, "torch",
                        torch_module_loaded() ? torch_module().version : std::string("none"));
    h5::write_attribute(*state_->file, "complete", std::int64_t{1});
    h5::flush(*state_->file);
    state_->problems.reset();
    state_->file.reset();
  });
  state_->pending.commit();
  state_->sidecar.reset();
}

}  // namespace sinkscope
