// SPDX-License-Identifier: Apache-2.0
// What one query head of one batch entry computes, right or with a mistake made, as the truth's own reference
// evaluates it: other inputs, other spans of keys, or other row constants in the backward.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "src/inputs/case.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {

inline constexpr double kNoSink = -std::numeric_limits<double>::infinity();

// Half-open.
struct Range {
  std::int64_t first = 0, end = 0;
  std::int64_t size() const { return end - first; }
  bool contains(std::int64_t i) const { return first <= i && i < end; }
  bool operator==(const Range&) const = default;
};

// Rows that see keys by one rule. Rows may be in several parts with disjoint keys: their softmaxes are merged.
struct Part {
  Range rows, keys;
  bool causal = true;  // bottom-right aligned within the part
  std::int64_t window = 0;
  bool reversed = false;  // rows and keys are counted from their ends: causal then means what comes after
  bool sink = true;       // the sink belongs to one part of a row alone
  bool operator==(const Part&) const = default;
};

// One row of the forward, as a backward finds it.
struct RowState {
  double lse, p, delta, dlse, sink;
  double p_ds;  // sum_j P_ij dS_ij; only where the function asks for it
};

// What the backward makes of a row: dS_ij = weight P_ij (dP_ij + constant), and sink_p * sink_constant is its part of
// the sink's gradient. The right one is {1, dlse - delta, p, dlse - delta}. The gains say how many times the rounding of
// Delta is in either constant.
struct RowRule {
  double weight, constant, sink_p, sink_constant;
  double delta_gain = 1, sink_delta_gain = 1;
  bool rounds_dout = false;  // dO times the row's 1 - p was rounded to its format first
};
using BackwardRule = RowRule (*)(const RowState&);

// Tensors that are head-first and read as sequence-first: transposed once too often (attention across the heads of each
// position, without sinks), or their memory read in the other order.
enum class HeadLayout { kRight, kTransposed, kReread };

// Rows of padding, whose dout is not the loss's: left out, counted in the sink's gradient, or in every gradient.
enum class PaddingRows { kLeftOut, kInDsinks, kInGradients };

struct HeadFunction;
using FunctionPtr = std::shared_ptr<const HeadFunction>;

struct HeadFunction {
  std::string key;         // what was done to the right function: "+sink_ignored+dlse_dropped"; "" when right
  std::string note;        // the last mistake's parameters, for people
  double sink = kNoSink;   // the logit that is used
  double sink_weight = 1;  // its gradient times this goes to the sink of head `sink_of`
  std::int64_t sink_of = -1;  // -1: nowhere
  double scale = 1;
  double softcap = 0;  // 0: none; else logits are softcap tanh(logit / softcap)
  std::int64_t kv_head = 0;
  double kv_weight = 1;             // of this head's part of dk and dv
  std::vector<Part> parts;          // every row in one at least
  bool drops_dlse = false;          // the gradient of the LSE never arrives
  BackwardRule backward = nullptr;  // null: the right one
  bool needs_p_ds = false;
  double lse_factor = 1;     // the LSE that is handed out is this times the LSE, ...
  bool lse_of_keys = false;  // ... or the LSE of the keys alone
  HeadLayout layout = HeadLayout::kRight;
  PaddingRows padding = PaddingRows::kLeftOut;
  // Where the function holds for some rows only: the others follow `elsewhere`.
  Range rows;
  FunctionPtr elsewhere;
};

// One head's outputs and their sigmas (in units of u; lse in 2^-24). Sums that heads share are in parts.
struct HeadResult {
  std::vector<double> out, lse, dq;                    // [rows, d], [rows]
  std::vector<double> sigma_out, sigma_lse, sigma_dq;  // likewise
  std::vector<double> dk, dv;                          // [keys, d]: this head's part
  std::vector<double> sigma2_dk, sigma2_dv;            // squares, without the last rounding of the sum
  std::vector<double> dsink, sigma2_dsink;             // [rows]: each row's part
  std::vector<double> p, delta;                        // [rows]
};

// The right function of query head `head`.
HeadFunction right_function(const Case& c, std::int64_t head);

// The same function on some rows alone; what it says of other rows, and of keys, means nothing.
HeadFunction only_rows(HeadFunction function, Range rows);

// Evaluates one head of one batch entry on one thread; without `backward` only out and lse. A case without dout has no
// backward. In a swapped layout all heads depend on each other: evaluate_swapped() is for these.
HeadResult evaluate(const Case& c, std::int64_t batch, std::int64_t head, const HeadFunction& function,
                    bool backward);

// Do they differ in what follows the forward alone, so that evaluate_alike() may have both?
bool have_same_forward(const HeadFunction& a, const HeadFunction& b);

// evaluate() of each of some functions that have the same forward, which is computed once.
std::vector<HeadResult> evaluate_alike(const Case& c, std::int64_t batch, std::int64_t head,
                                       const std::vector<FunctionPtr>& functions, bool backward);

// Every head [b * hq] in a swapped layout.
std::vector<HeadResult> evaluate_swapped(const Case& c, HeadLayout layout, bool backward, int threads);

// The inputs of a case as HeadLayout::kReread has them.
Case reread_case(const Case& c);

// Some rows of out and dq of one head, which are rows of many heads as they are read; from reread_case().
HeadResult evaluate_reread_rows(const Case& read, std::int64_t batch, std::int64_t head, Range rows,
                                bool backward, int threads);

}  // namespace sinkscope
