// SPDX-License-Identifier: Apache-2.0
// The gate: limits from a TOML file, and what they make of the metrics. Checks are written so that NaN fails.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/error.hpp"
#include "src/diff/diff.hpp"

namespace sinkscope {

// An infinite limit is not checked. z_rms is the limit of a head of many rows (z_rms_limit()).
struct Limits {
  double z_rms;
  double z_row;
  double z_max;
  bool operator==(const Limits&) const = default;
};

// One table of limits per format: elements of out dq dk dv, then lse, then the one number of dsinks (|z|), then the
// size of a significant bias: sum e r must exceed this many times sum u sigma |r|.
struct FormatLimits {
  Limits tensors;
  Limits lse;
  double dsinks;
  double bias_z;
  bool operator==(const FormatLimits&) const = default;
};

struct Gate {
  bool operator==(const Gate&) const = default;
  std::string name;                       // file stem
  std::map<DType, FormatLimits> formats;  // bf16, fp16, fp32
  double bias_significance = 1e-3;        // family-wise, two-sided, Bonferroni over the heads of a tensor
  bool repeatable = true;                 // every repeat must give the same bits
  std::vector<std::string> judged;        // NAME or NAME:BACKEND; "recorded.*": every recorded path
  std::vector<std::string> observed;
};

// Throws InputError naming the file, the key, the value seen and the value wanted; unknown keys are errors.
Gate read_gate(const std::string& path);
Gate parse_gate(std::string_view toml, const std::string& name);

// The resolved gate as TOML: parse_gate(to_toml(g), g.name) equals g.
std::string to_toml(const Gate& gate);

// `--judge NAME,...`: exactly these are judged, everything else is observed.
void judge_only(Gate& gate, const std::vector<std::string>& names);
bool is_judged_by_request(const Gate& gate);  // was judge_only() called?

// Is this path's verdict part of the exit code? `backend` is what it ran on; "PATH:cuda" in the gate's list
// means PATH on a backend that starts so. recorded.NAME is observed where NAME is. A planted fault is judged
// as the path that it wraps.
bool is_judged(const Gate& gate, std::string_view path, std::string_view backend = {});

enum class Verdict { kPassed, kFailed, kMistrusted, kInconclusive, kSkipped, kError };
std::string_view text(Verdict verdict);
Verdict verdict_from_text(std::string_view text);  // throws InputError

// One row of /verdicts: what came of one tensor of one path, and the head that decided it: the worst by
// value/limit.
struct VerdictRow {
  std::string problem;  // the case's name
  std::string path;
  std::string tensor;  // "" when the whole path was skipped or broke
  Verdict verdict = Verdict::kPassed;
  bool judged = true;
  std::string
      metric;  // the statistic nearest to or farthest over its limit: "z_rms", "nonfinite", "bias_z", ...
  std::int64_t batch = -1, head = -1;
  std::int64_t row = -1, column = -1;
  double value = 0;
  double limit = 0;
  std::int64_t failed_heads = 0;
  std::string reason;  // for everything but passed and failed: one sentence
  std::string repro;   // the command that reproduces it
};

// Where a row's value was seen: "batch 0 kv head 1 row 17".
std::string place_of(const VerdictRow& row);

// Is the signed bias of a head beyond chance (t of batch means, Bonferroni over the tensor's heads)? Its size
// is judged only then. Never in lse: at fp32's scale, neighbouring rows' LSEs round alike.
bool bias_is_significant(const Gate& gate, const TensorMetrics& metrics, const HeadMetrics& head);

// The limit on z_rms of a head of so many rows: elements of a row share errors, the rms over few rows scatters by
// 1 / sqrt(2 rows) of itself, and twice that is allowed.
double z_rms_limit(const Limits& limits, std::int64_t rows);

// Which heads of a tensor fail: [b * h] as in `metrics`.
std::vector<bool> failed_heads(const Gate& gate, DType dtype, const TensorMetrics& metrics);

// Judges one tensor. Fills every field but problem, path, judged and repro.
VerdictRow judge(const Gate& gate, DType dtype, const TensorMetrics& metrics);

// The exit code of a run: judged rows only; kEnvironment when nothing was left to judge.
ExitCode exit_code(const std::vector<VerdictRow>& rows);

}  // namespace sinkscope
