// SPDX-License-Identifier: Apache-2.0
// What one query head comes to in double precision with roundings switched on at chosen stages.
#pragma once

#include <map>
#include <span>
#include <utility>
#include <vector>

#include "src/explain/head_data.hpp"

namespace sinkscope {

// What a row's logits are taken relative to when P = exp(S - pivot) is rounded in the forward: the row's maximum, its
// LSE (P normalised), or the maximum so far of an online softmax, whose key tiles of 64 or 128 are visited up or down;
// kBlock: tiles of 128 that begin at the first key which the row's block of 64 rows sees.
enum class Pivot { kNone, kRow, kLse, kUp64, kUp128, kDown64, kDown128, kBlock };

// Where Delta comes from: exact, dO . out of the path's own out, or of the out before it was rounded.
enum class DeltaFrom { kExact, kOut, kUnroundedOut };

// The stages that round, in the order of the algorithm. The format is the case's own where none is named.
struct Roundings {
  Narrow products = Narrow::kNone;  // every product takes its operands in this format
  bool scaled_q = false;            // scale q is rounded, and multiplies K
  bool s = false;                   // the logits
  bool softmax = false;             // P, once, wherever it is used
  Pivot pivot = Pivot::kNone;       // P as it multiplies V, relative to this
  bool exact_sum = false;           // ... while the row's sum is of P before that
  bool own_lse = false;             // the backward's P is exp(S - the path's own LSE)
  bool p = false;                   // the backward's P, as it multiplies dO
  DeltaFrom delta = DeltaFrom::kExact;
  bool narrow_delta = false;  // Delta itself
  bool dp = false;
  bool ds = false;     // dS, as it multiplies K and Q
  int accumulate = 0;  // sums of products are rounded after so many terms; 0: never
  bool heads = false;  // each query head's part of dk and dv; else a group is one sum
  bool operator==(const Roundings&) const = default;
};

// What the backward takes of each row of a head: [sq] each.
struct RowScalars {
  std::vector<double> lse, delta;
};

// Some rows and some keys of a head (sorted). out and dq need all keys, dk and dv all rows.
class RoundedBlock {
 public:
  RoundedBlock(const HeadData& head, std::vector<std::int64_t> rows, std::vector<std::int64_t> keys);

  std::vector<double> out(const Roundings& r);  // [rows, d]
  std::vector<double> lse(const Roundings& r);  // [rows], the forward's
  std::vector<double> dq(const Roundings& r);
  // Adds the head's part of dk, yet to be scaled, or of dv: [keys, d].
  void add_keys(bool is_dk, const Roundings& r, const RowScalars& scalars, std::vector<double>& sums);
  // The backward's LSE and Delta of row `i` of the block.
  std::pair<double, double> scalars(const Roundings& r, std::size_t i);
  // Does more than one P of row `i` come to 1 when P is relative to the row's maximum?
  bool is_tied(std::size_t i);
  // What is added to out, [rows, d], where P is relative to the row's maximum and some of it is rounded up to 1.
  std::vector<double> rounded_up_to_one();

 private:
  struct Logits {
    std::vector<double> q, k, v, dout;  // operands: of the block's rows and keys
    std::vector<double> s, dp;          // [rows, keys]; dp only where there is a dO
  };
  struct Row {
    std::size_t index = 0, first = 0, end = 0;  // of the block: the row, the keys that it sees
    double lse = 0, most = 0;                   // the forward's, and the largest logit
    std::vector<double> s, p;                   // p: by the forward's LSE
    std::size_t count() const { return end - first; }
  };

  const Logits& logits(const Roundings& r);
  Row forward_row(const Roundings& r, std::size_t i);
  double weigh(const Roundings& r, const Row& row, std::vector<double>& weights) const;
  std::vector<double> pivots(const Row& row, Pivot pivot) const;
  void backward_row(const Roundings& r, std::size_t i, double lse, double delta, Row& row,
                    std::vector<double>& ds);
  bool is_complete() const { return static_cast<std::int64_t>(keys_.size()) == head_.sk; }

  const HeadData& head_;
  std::vector<std::int64_t> rows_, keys_;
  std::vector<std::pair<std::size_t, std::size_t>> seen_;  // [rows] first and end of the keys, within keys_
  std::map<std::pair<Narrow, bool>, Logits> logits_;
};

}  // namespace sinkscope
