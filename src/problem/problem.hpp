// SPDX-License-Identifier: Apache-2.0
// The problem line: the one identity of a case. It is the command's argument, a line of a suite, the name of
// a test, the failure message and the line that reproduces it.
//
//   b2 hq64 hkv8 sq4096 sk4096 d64 bf16 causal w128 sink=normal fill=gaussian seed=7
//   capture=datasets/captures/calm_layer1.safetensors
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/dtype.hpp"

namespace sinkscope {

enum class Layout { kBhsd, kBshd };
enum class Fill { kGaussian, kIntegers, kCancel, kLoud, kTies, kNeedle };
enum class SinkKind { kNormal, kNone, kValue, kExtreme };

struct DocumentSize {
  std::int64_t rows, keys;
};

// The function that is computed: sizes, format and masks.
struct AttentionShape {
  std::int64_t b = 1, hq = 8, hkv = 8, sq = 512, sk = 512, d = 64;
  DType dtype = DType::kBf16;
  bool causal = true;                // bottom-right aligned, per document
  std::int64_t window = 0;           // 0: none; counts the row's own key
  double scale = 0.125;              // default 1/sqrt(d)
  std::vector<std::int64_t> docs;    // lengths of packed documents; empty: not packed
  std::vector<std::int64_t> docs_k;  // key lengths; empty: as docs
  // [b], rows and keys of each batch entry without padding; empty: all. What comes after is padding: it has no part in the
  // loss, and what outputs hold there means nothing.
  std::vector<std::int64_t> seqlens;

  std::int64_t group() const { return hq / hkv; }
  std::vector<std::int64_t> cu_q() const;  // [documents + 1]; empty when not packed
  std::vector<std::int64_t> cu_k() const;
  std::vector<DocumentSize> documents() const;  // one of sq rows and sk keys when not packed
  // Of `rows` rows or keys of a batch entry, those before its padding.
  std::int64_t real_rows(std::int64_t batch, std::int64_t rows) const {
    return seqlens.empty() ? rows : seqlens[static_cast<std::size_t>(batch)];
  }
  bool operator==(const AttentionShape&) const = default;
};

// Which gradients are asked for (grads=q,k,v,s).
struct Grads {
  bool q = true, k = true, v = true, s = true;
  bool any() const { return q || k || v || s; }
  bool operator==(const Grads&) const = default;
};

struct Problem {
  std::string capture;  // path of a capture; then `shape`, sink and dlse come from it and fill and seed have
                        // no meaning
  AttentionShape shape;
  SinkKind sink = SinkKind::kNormal;
  double sink_value = 0;  // with kValue; may be -inf or inf
  DType sink_dtype = DType::kFp32;
  bool dlse = false;  // an upstream gradient of the LSE is given
  Layout layout = Layout::kBhsd;
  Grads grads;
  bool residual = false;  // the kernel writes out's rounding residual and the backward uses it
  Fill fill = Fill::kGaussian;
  std::uint64_t seed = 0;
  bool operator==(const Problem&) const = default;
};

// Throws InputError that shows the token: unknown, repeated, malformed, or impossible together with another.
Problem parse_problem(std::string_view line);

// The shape, format and mask, then what differs from the default; `canonical` prints defaults too.
// parse_problem(to_string(p)) == p.
std::string to_string(const Problem& problem, bool canonical = false);

// Throws InputError when the values cannot be computed together (hq not a multiple of hkv, a window without
// causal, ...).
void check_problem(const Problem& problem);

std::string_view name_of(Layout layout);
std::string_view name_of(Fill fill);

// Every fill, in the order of the enum.
const std::vector<Fill>& all_fills();

// The lines of a suite file: one problem per line, `#` starts a comment, blank lines are skipped, capture
// paths are taken relative to the suite's folder. Throws InputError naming file and line.
std::vector<Problem> read_suite(const std::string& path);

}  // namespace sinkscope
