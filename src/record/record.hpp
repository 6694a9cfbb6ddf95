// SPDX-License-Identifier: Apache-2.0
// The record: what was measured, as HDF5 for notebooks and for judging again. Layout in src/record/README.md.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "src/diff/diff.hpp"
#include "src/explain/explain.hpp"
#include "src/gate/gate.hpp"
#include "src/inputs/case.hpp"
#include "src/record/run_info.hpp"

namespace sinkscope {

inline constexpr int kRecordMajor = 1;
inline constexpr int kRecordMinor = 2;

// What a record keeps of a capture's own words.
inline constexpr std::array kCaptureAttributes = {"source", "model", "layer"};

// What one path came to on one case.
struct PathResult {
  std::string path;
  std::string backend;
  bool judged = true;
  std::vector<TensorMetrics> metrics;  // of the tensors that it produced, in the order of TensorName
  std::vector<VerdictRow> verdicts;    // one per tensor, or one for the path when it was skipped or broke
  std::vector<std::string> sentences;  // what happened, for people
  Explanation explanation;             // which mistakes, where it was asked for
  Outputs outputs;                     // kept only for --save-tensors
};

// What one case came to.
struct CaseResult {
  std::string name;
  std::string problem_line;
  std::string inputs_sha256;
  AttentionShape shape;
  std::uint64_t seed = 0;
  std::string truth = "eigen";  // what it was measured against; read back: the run's attribute
  std::map<std::string, std::string> metadata;  // a capture's own words; read back: kCaptureAttributes
  HeadFacts facts;
  std::vector<PathResult> paths;
};

// Writes a record problem by problem under a temporary name; finish() makes it complete and gives it its
// final name. A JSON-lines sidecar (final name + ".partial.jsonl.partial-PID") carries the verdicts meanwhile, and stays
// only if the process dies.
class RecordWriter {
 public:
  RecordWriter(const std::string& path, const RunInfo& info, const Gate& gate, bool overwrite);
  ~RecordWriter();
  // `saved` is the case whose tensors are stored too, or null. Throws EnvironmentError ("disk full ...").
  void add(const CaseResult& result, const Case* saved = nullptr);
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A record read back: enough to judge again and to compare two of them.
struct Record {
  std::map<std::string, std::string> attributes;  // of the root
  std::string gate_toml;
  std::vector<CaseResult> cases;  // outputs left empty
  std::vector<VerdictRow> verdicts;
};

// Throws InputError: not HDF5, not a record, incomplete, another major version (by name).
Record read_record(const std::string& path);

}  // namespace sinkscope
