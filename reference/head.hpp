// SPDX-License-Identifier: Apache-2.0
// One query head of one document: the strip of rows by keys that the whole computation walks over.
#pragma once

#include <Eigen/Core>
#include <cstdint>

#include "reference/attention.hpp"

namespace reference {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixMap = Eigen::Map<Matrix>;
using ConstMatrixMap = Eigen::Map<const Matrix>;

// Rows and keys of one document (or of the whole batch entry when nothing is packed), and who sees whom.
struct Span {
  std::int64_t rows = 0;
  std::int64_t keys = 0;
  bool causal = true;
  std::int64_t window = 0;

  // The keys that `row` sees are [first_key(row), end_key(row)); empty when first >= end. (Eq. 1)
  std::int64_t end_key(std::int64_t row) const;
  std::int64_t first_key(std::int64_t row) const;
};

// Views of one query head within one document. Pointers are null where a thing is not given or not wanted.
struct HeadView {
  Span span;
  std::int64_t d = 0;
  double scale = 1;
  double sink = 0;                                                         // -inf: none
  const double *q = nullptr, *k = nullptr, *v = nullptr, *dout = nullptr;  // [rows or keys, d]
  const double* dlse = nullptr;                                            // [rows]
  double *out = nullptr, *lse = nullptr, *delta = nullptr, *p_sink = nullptr, *entropy = nullptr;
  double* dq = nullptr;  // [rows, d]
  double *sigma_out = nullptr, *sigma_lse = nullptr, *sigma_delta = nullptr, *sigma_dq = nullptr;
};

// What a head adds to sums that it shares: with the other heads of its group (dk, dv) or other documents
// (dsink). The sigma members hold squares until all has been added.
struct HeadSums {
  double *dk = nullptr, *dv = nullptr;                // [keys, d]
  double *sigma2_dk = nullptr, *sigma2_dv = nullptr;  // [keys, d]
  double dsink = 0;
  double sigma2_dsink = 0;
};

// Scratch of one thread, reused from head to head: strips of kRowBlock rows by all keys.
class HeadWorker {
 public:
  HeadWorker(const Rounding& rounding, bool sigma);
  // Computes one head; `sums` gets added to.
  void run(const HeadView& head, HeadSums& sums);

 private:
  struct Block;
  void forward(const HeadView& head, const Block& block);
  void backward(const HeadView& head, const Block& block, HeadSums& sums);
  void sigma_of_block(const HeadView& head, const Block& block, HeadSums& sums);

  // Writes scale * squares(a) * squares(b)^T, with b2 those squares, into `to`, tile by tile.
  void products_of_squares(const ConstMatrixMap& a, const Matrix& b2, double scale, const Block& block,
                           Matrix& to) const;

  // The rounding of a row's normaliser, (rho sigma_LSE)^2: relative, and the same for all keys of the row.
  double row_rounding(const HeadView& head, std::int64_t row) const;

  Rounding rounding_;
  bool sigma_;
  double rho2_;              // (2^-24 / u)^2
  double eta2_;              // (eta / u)^2
  bool fp32_;                // are fp32's own roundings as large as the format's?
  double flushed2_;          // (2^-126 / u)^2
  Matrix p_;                 // logits, then probabilities
  Matrix tau2_;              // squared fp32 rounding of a logit, in units of 2^-24
  Matrix dp_;                // dO V^T, then dS
  Eigen::VectorXd most_ds_;  // per row, what bounds dS / P
  Matrix psi2_;              // squared fp32 rounding of an element of dO V^T, in units of 2^-24; fp32 only
  double largest_key_, longest_value_;  // |k_jd|, |v_j| of the head
  Matrix k2_, v2_;                      // squares of the head's keys and values
};

}  // namespace reference
