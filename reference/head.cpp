// SPDX-License-Identifier: Apache-2.0
#include "reference/head.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace reference {
namespace {

using Vector = Eigen::VectorXd;

constexpr std::int64_t kRowBlock = 128;  // rows of a strip
constexpr std::int64_t kKeyTile = 512;   // keys of a tile: its temporaries stay in the second-level cache
constexpr double kFp32Roundoff = 0x1p-24;
constexpr double kLeastNormal = 0x1p-126;  // of fp32
constexpr double kFixedPoint =
    0x1p-30;  // the step of a row of dQ kept in fixed point, of what bounds the row
constexpr double kAddsPerSquaredStep = 12 * 128;  // keys whose sums leave a variance of one squared step
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// log(exp(a) + exp(b)) with the larger as pivot, for any a and b that are not NaN.
double log_add_exp(double a, double b) {
  const double high = std::max(a, b);
  if (std::isinf(high)) return high;
  return high + std::log1p(std::exp(std::min(a, b) - high));
}

double square(double x) {
  return x * x;
}

}  // namespace

std::int64_t Span::end_key(std::int64_t row) const {
  return causal ? std::clamp<std::int64_t>(row + keys - rows + 1, 0, keys) : keys;
}

std::int64_t Span::first_key(std::int64_t row) const {
  return window > 0 ? std::clamp<std::int64_t>(row + keys - rows + 1 - window, 0, keys) : 0;
}

// Rows [row, row + m) and the keys [key, key + n) that at least one of them sees. Columns of the strips count
// from `key`.
struct HeadWorker::Block {
  std::int64_t row, m, key, n;

  Block(const Span& span, std::int64_t first_row)
      : row(first_row),
        m(std::min(kRowBlock, span.rows - first_row)),
        key(span.first_key(row)),
        n(std::max<std::int64_t>(0, span.end_key(row + m - 1) - key)) {}

  // Columns of the strip that row i of the block sees.
  std::int64_t first(const Span& span, std::int64_t i) const {
    return std::min(span.first_key(row + i) - key, n);
  }
  std::int64_t count(const Span& span, std::int64_t i) const {
    return std::max<std::int64_t>(0, std::min(span.end_key(row + i) - key, n) - first(span, i));
  }

  ConstMatrixMap rows_of(const double* tensor, std::int64_t d) const { return {tensor + row * d, m, d}; }
  MatrixMap rows_of(double* tensor, std::int64_t d) const { return {tensor + row * d, m, d}; }
};

HeadWorker::HeadWorker(const Rounding& rounding, bool sigma)
    : rounding_(rounding),
      sigma_(sigma),
      rho2_(square(kFp32Roundoff / rounding.unit_roundoff)),
      eta2_(square(rounding.underflow / rounding.unit_roundoff)),
      fp32_(rounding.unit_roundoff <= kFp32Roundoff),
      flushed2_(square(kLeastNormal / rounding.unit_roundoff)) {}

void HeadWorker::products_of_squares(const ConstMatrixMap& a, const Matrix& b2, double scale,
                                     const Block& block, Matrix& to) const {
  to.resize(block.m, block.n);
  const Matrix a2 = a.array().square().matrix() * scale;
  for (std::int64_t tile = 0; tile < block.n; tile += kKeyTile) {
    const std::int64_t n = std::min(kKeyTile, block.n - tile);
    to.middleCols(tile, n).noalias() = a2 * b2.middleRows(block.key + tile, n).transpose();
  }
}

double HeadWorker::row_rounding(const HeadView& head, std::int64_t row) const {
  return rho2_ * square(head.sigma_lse[row]);
}

void HeadWorker::run(const HeadView& head, HeadSums& sums) {
  if (sigma_) {
    k2_ = ConstMatrixMap(head.k, head.span.keys, head.d).array().square().matrix();
    v2_ = ConstMatrixMap(head.v, head.span.keys, head.d).array().square().matrix();
    largest_key_ = k2_.size() > 0 ? std::sqrt(k2_.maxCoeff()) : 0;
    longest_value_ = v2_.size() > 0 ? std::sqrt(v2_.rowwise().sum().maxCoeff()) : 0;
  }
  for (std::int64_t row = 0; row < head.span.rows; row += kRowBlock) {
    const Block block(head.span, row);
    p_.setZero(block.m, block.n);
    forward(head, block);
    if (head.dout != nullptr) backward(head, block, sums);
    if (sigma_) sigma_of_block(head, block, sums);
  }
}

// Eq. 1 to 6: logits, LSE, P, p, O; the entropy; sigma_LSE (Eq. 19).
void HeadWorker::forward(const HeadView& head, const Block& block) {
  const auto q = block.rows_of(head.q, head.d);
  for (std::int64_t tile = 0; tile < block.n; tile += kKeyTile) {
    const std::int64_t n = std::min(kKeyTile, block.n - tile);
    const ConstMatrixMap k(head.k + (block.key + tile) * head.d, n, head.d);
    p_.middleCols(tile, n).noalias() = head.scale * (q * k.transpose());
  }
  if (sigma_) {
    // Eq. 18: the fp32 part of a logit.
    products_of_squares(q, k2_, square(head.scale) * static_cast<double>(head.d) / 16, block, tau2_);
    const double truncation2 = fp32_ ? 0 : square(static_cast<double>(head.d) / 32);
    tau2_.array() += (1 + truncation2) * p_.array().square();
  }

  Vector exponentials(block.n);
  for (std::int64_t i = 0; i < block.m; ++i) {
    const std::int64_t first = block.first(head.span, i);
    const std::int64_t count = block.count(head.span, i);
    auto logits = p_.row(i).segment(first, count).transpose().array();
    double keys_lse = -kInfinity;
    double high = 0;
    if (count > 0) {
      high = logits.maxCoeff();
      exponentials.head(count) = (logits - high).exp();
      keys_lse = high + std::log(exponentials.head(count).sum());
    }
    const double lse = log_add_exp(keys_lse, head.sink);
    const double p_sink = head.sink == -kInfinity ? 0 : head.sink == lse ? 1 : std::exp(head.sink - lse);
    double entropy = p_sink > 0 && p_sink < 1 ? -p_sink * (head.sink - lse) : 0;
    if (count > 0) {
      const double factor = std::exp(high - lse);
      const double weighted = factor * exponentials.head(count).matrix().dot(logits.matrix());
      if (factor > 0) entropy += factor * exponentials.head(count).sum() * lse - weighted;
      p_.row(i).head(first).setZero();
      p_.row(i).tail(block.n - first - count).setZero();
      logits = factor * exponentials.head(count).array();
    } else {
      p_.row(i).setZero();
    }
    const std::int64_t row = block.row + i;
    head.lse[row] = lse;
    head.p_sink[row] = p_sink;
    head.entropy[row] = std::max(0.0, entropy);
    if (sigma_) {
      const double sum = (p_.row(i).array().square() * tau2_.row(i).array()).sum();
      const double adds = static_cast<double>(count) / 16;
      head.sigma_lse[row] = std::isfinite(lse) ? std::sqrt(square(lse) + 1 + adds + sum) : 0;
    }
  }
  const ConstMatrixMap v(head.v + block.key * head.d, block.n, head.d);
  block.rows_of(head.out, head.d).noalias() = p_ * v;
}

// Eq. 7 to 13: Delta, dP, dS, dQ, dK, dV, dsink; sigma_Delta and sigma_dsink (Eq. 15 and 20) on the way.
void HeadWorker::backward(const HeadView& head, const Block& block, HeadSums& sums) {
  const auto q = block.rows_of(head.q, head.d);
  const auto dout = block.rows_of(head.dout, head.d);
  const auto out = block.rows_of(static_cast<const double*>(head.out), head.d);
  const ConstMatrixMap k(head.k + block.key * head.d, block.n, head.d);
  const ConstMatrixMap v(head.v + block.key * head.d, block.n, head.d);
  const Vector delta = (dout.array() * out.array()).rowwise().sum();

  most_ds_.resize(block.m);
  dp_.resize(block.m, block.n);
  for (std::int64_t tile = 0; tile < block.n; tile += kKeyTile) {
    const std::int64_t n = std::min(kKeyTile, block.n - tile);
    dp_.middleCols(tile, n).noalias() = dout * v.middleRows(tile, n).transpose();
  }

  if (sigma_ && fp32_) {
    products_of_squares(dout, v2_, static_cast<double>(head.d) / 16, block, psi2_);
    psi2_.array() += dp_.array().square();
  }

  for (std::int64_t i = 0; i < block.m; ++i) {
    const std::int64_t row = block.row + i;
    const double shift = (head.dlse != nullptr ? head.dlse[row] : 0) - delta(i);
    const double p_sink = head.p_sink[row];
    head.delta[row] = delta(i);
    sums.dsink += p_sink * shift;
    auto p = p_.row(i).array();
    auto dp = dp_.row(i).array();
    if (sigma_) {
      const auto visible_dp = dp.segment(block.first(head.span, i), block.count(head.span, i));
      double sigma2 = (p * dp).square().sum() + eta2_ * visible_dp.square().sum() +
                      (dout.row(i).array().square() * (out.row(i).array().square() + eta2_)).sum();
      sigma2 += square(delta(i)) * row_rounding(head, row);
      if (fp32_) sigma2 += (p.square() * (tau2_.row(i).array() * dp.square() + psi2_.row(i).array())).sum();
      head.sigma_delta[row] = std::sqrt(sigma2);
      const double term = p_sink * shift;
      const double fp32 = 1 + static_cast<double>(head.span.rows) / 16;
      sums.sigma2_dsink += square(p_sink) * sigma2 + square(term) * (rho2_ * fp32 + row_rounding(head, row));
    }
    if (sigma_) most_ds_(i) = dout.row(i).norm() * longest_value_ + std::abs(shift);
    dp = p * (dp + shift);
  }

  MatrixMap dq = block.rows_of(head.dq, head.d);
  dq.setZero();
  for (std::int64_t tile = 0; tile < block.n; tile += kKeyTile) {
    const std::int64_t n = std::min(kKeyTile, block.n - tile);
    const std::int64_t key = block.key + tile;
    const auto p = p_.middleCols(tile, n);
    const auto ds = dp_.middleCols(tile, n);
    MatrixMap(sums.dv + key * head.d, n, head.d).noalias() += p.transpose() * dout;
    MatrixMap(sums.dk + key * head.d, n, head.d).noalias() += head.scale * (ds.transpose() * q);
    dq.noalias() += head.scale * (ds * k.middleRows(tile, n));
  }
}

// Eq. 14, 16, 17: sigma of out, dq, dk, dv. tau2_ becomes the factor of Eq. 18 on the way.
void HeadWorker::sigma_of_block(const HeadView& head, const Block& block, HeadSums& sums) {
  const std::int64_t d = head.d;
  const bool with_backward = head.dout != nullptr;
  const auto out = block.rows_of(static_cast<const double*>(head.out), d);
  Vector row_terms(block.m);
  for (std::int64_t i = 0; i < block.m; ++i) row_terms(i) = 1 + row_rounding(head, block.row + i);
  Matrix sigma2_out = row_terms.asDiagonal() * out.array().square().matrix();
  Matrix sigma2_dq = Matrix::Zero(block.m, d);
  Matrix pk = Matrix::Zero(block.m, d);
  Matrix q2, dout2, delta2_q2;
  if (with_backward) {
    q2 = block.rows_of(head.q, d).array().square().matrix() * square(head.scale);
    dout2 = block.rows_of(head.dout, d).array().square().matrix();
    const Eigen::Map<const Vector> sigma_delta(head.sigma_delta + block.row, block.m);
    delta2_q2 = sigma_delta.array().square().matrix().asDiagonal() * q2;
  }

  Matrix p2, ds2, plain_p2;
  for (std::int64_t tile = 0; tile < block.n; tile += kKeyTile) {
    const std::int64_t n = std::min(kKeyTile, block.n - tile);
    const std::int64_t key = block.key + tile;
    p2.setZero(block.m, n);
    ds2.setZero(block.m, n);
    plain_p2 = p_.middleCols(tile, n).array().square().matrix();
    for (std::int64_t i = 0; i < block.m; ++i) {
      const std::int64_t row_first = block.first(head.span, i);
      const std::int64_t first = std::max<std::int64_t>(row_first, tile);
      const std::int64_t count = std::min(row_first + block.count(head.span, i), tile + n) - first;
      if (count <= 0 || !std::isfinite(head.lse[block.row + i])) continue;
      const auto factor = row_terms(i) + rho2_ * tau2_.row(i).segment(first, count).array();
      p2.row(i).segment(first - tile, count) =
          plain_p2.row(i).segment(first - tile, count).array() * factor + eta2_;
      if (with_backward) {
        ds2.row(i).segment(first - tile, count) = dp_.row(i).segment(first, count).array().square() * factor +
                                                  eta2_ + square(most_ds_(i)) * flushed2_;
        const auto row_p2 = plain_p2.row(i).segment(first - tile, count).array();
        auto row_ds2 = ds2.row(i).segment(first - tile, count).array();
        if (fp32_) {
          row_ds2 += row_p2 * psi2_.row(i).segment(first, count).array();
        } else {
          row_ds2 += row_p2 * (rho2_ * square(most_ds_(i)) / 16);
        }
      }
    }
    sigma2_out.noalias() += p2 * v2_.middleRows(key, n);
    if (!with_backward) continue;
    sigma2_dq.noalias() += ds2 * k2_.middleRows(key, n);
    pk.noalias() += p_.middleCols(tile, n) * ConstMatrixMap(head.k + key * d, n, d);
    MatrixMap sigma2_dk(sums.sigma2_dk + key * d, n, d);
    sigma2_dk.noalias() += ds2.transpose() * q2;
    sigma2_dk.noalias() += plain_p2.transpose() * delta2_q2;
    MatrixMap(sums.sigma2_dv + key * d, n, d).noalias() += p2.transpose() * dout2;
  }

  block.rows_of(head.sigma_out, d) = (sigma2_out.array() + eta2_).sqrt();
  if (!with_backward) return;
  const Eigen::Map<const Vector> sigma_delta(head.sigma_delta + block.row, block.m);
  const auto from_delta =
      (sigma_delta.array().square().matrix().asDiagonal() * pk.array().square().matrix()).array();
  const auto dq = block.rows_of(static_cast<const double*>(head.dq), d).array();
  sigma2_dq = square(head.scale) * (sigma2_dq.array() + from_delta) +
              (row_terms.asDiagonal() * dq.square().matrix()).array() + eta2_;
  Vector fixed_point(block.m);
  for (std::int64_t i = 0; i < block.m; ++i) {
    const double bound = head.scale * (1 - head.p_sink[block.row + i]) * most_ds_(i) * largest_key_;
    const double steps2 = 1 + static_cast<double>(block.count(head.span, i)) / kAddsPerSquaredStep;
    fixed_point(i) = square(kFixedPoint / rounding_.unit_roundoff * bound) * steps2;
  }
  block.rows_of(head.sigma_dq, d) = (sigma2_dq.colwise() + fixed_point).array().sqrt();
}

}  // namespace reference
