// SPDX-License-Identifier: Apache-2.0
// The sigmas against Eq. 14 to 20 as they stand, in plain loops, for every format and mask.
#include <algorithm>
#include <cmath>
#include <string>

#include "gtest/gtest.h"

#include "tests/reference/naive.hpp"

namespace reference {
namespace {

using naive::Real;

struct Format {
  const char* name;
  Rounding rounding;
};

struct Sigmas {
  std::vector<Real> out, lse, delta, dq, dk, dv, dsinks;
};

Real square(Real x) {
  return x * x;
}

Sigmas plain_sigmas(const naive::Data& data, const Rounding& rounding) {
  const Problem& p = data.problem;
  const Real u = rounding.unit_roundoff, rho2 = square(0x1p-24L / u), eta2 = square(rounding.underflow / u);
  const bool fp32 = rho2 == 1;
  const auto at = [](const std::vector<double>& tensor, std::int64_t row, std::int64_t d, std::int64_t c) {
    return static_cast<Real>(tensor[static_cast<std::size_t>(row * d + c)]);
  };
  const auto rows = static_cast<std::size_t>(p.b * p.hq * p.sq);
  const auto keys = static_cast<std::size_t>(p.b * p.hkv * p.sk);
  const auto d = static_cast<std::size_t>(p.d);
  Sigmas s{std::vector<Real>(rows * d),
           std::vector<Real>(rows),
           std::vector<Real>(rows),
           std::vector<Real>(rows * d),
           std::vector<Real>(keys * d),
           std::vector<Real>(keys * d),
           std::vector<Real>(static_cast<std::size_t>(p.hq))};
  std::vector<Real> dk(keys * d), dv(keys * d), dsinks(static_cast<std::size_t>(p.hq));
  for (std::int64_t flat = 0; flat < p.b * p.hq * p.sq; ++flat) {
    const std::int64_t batch = flat / (p.hq * p.sq), h = flat / p.sq % p.hq, i = flat % p.sq;
    const std::int64_t kv = (batch * p.hkv + h / (p.hq / p.hkv)) * p.sk;
    const auto r = static_cast<std::size_t>(flat);
    const naive::Row row = naive::row_of(data, batch, h, i);
    std::vector<Real> out(d), pk(d), dq(d), out2(d), dq2(d);
    std::vector<Real> tau2(row.p.size()), psi2(row.p.size()), dp(row.p.size());
    Real delta = 0, sum_tau = 0, sigma_delta2 = 0;
    for (std::int64_t j = 0; j < p.sk; ++j) {
      const auto jj = static_cast<std::size_t>(j);
      for (std::int64_t c = 0; c < p.d; ++c) {
        const Real q = at(data.q, flat, p.d, c), k = at(data.k, kv + j, p.d, c);
        const Real v = at(data.v, kv + j, p.d, c), dout = at(data.dout, flat, p.d, c);
        tau2[jj] += square(p.scale * q * k) * p.d / 16;
        psi2[jj] += square(dout * v) * p.d / 16;
        dp[jj] += dout * v;
        out[static_cast<std::size_t>(c)] += row.p[jj] * v;
        pk[static_cast<std::size_t>(c)] += row.p[jj] * k;
      }
      tau2[jj] += square(row.s[jj]) * (fp32 ? 1 : 1 + square(static_cast<Real>(p.d) / 32));
      psi2[jj] += square(dp[jj]);
      sum_tau += square(row.p[jj]) * tau2[jj];
    }
    for (std::int64_t c = 0; c < p.d; ++c)
      delta += at(data.dout, flat, p.d, c) * out[static_cast<std::size_t>(c)];
    s.lse[r] = std::isfinite(row.lse)
                   ? std::sqrt(square(row.lse) + 1 + static_cast<Real>(row.keys) / 16 + sum_tau)
                   : 0;
    const Real common = rho2 * square(s.lse[r]);
    for (std::int64_t j = 0; j < p.sk; ++j) {
      const auto jj = static_cast<std::size_t>(j);
      if (!naive::visible(p, i, j)) continue;
      sigma_delta2 += square(row.p[jj] * dp[jj]) + eta2 * square(dp[jj]);
      if (fp32) sigma_delta2 += square(row.p[jj]) * (tau2[jj] * square(dp[jj]) + psi2[jj]);
    }
    for (std::int64_t c = 0; c < p.d; ++c)
      sigma_delta2 += square(at(data.dout, flat, p.d, c)) * (square(out[static_cast<std::size_t>(c)]) + eta2);
    sigma_delta2 += square(delta) * common;
    s.delta[r] = std::sqrt(sigma_delta2);
    const Real shift = (data.dlse.empty() ? 0 : static_cast<Real>(data.dlse[r])) - delta;
    // What bounds dS / P: |dO_i| max |v_j| + |Delta_i - dLSE_i| over the document's keys.
    const naive::Extent own_keys = naive::keys_of(p, i);
    Real dout_norm = 0, longest_value = 0, largest_key = 0;
    for (std::int64_t c = 0; c < p.d; ++c) dout_norm += square(at(data.dout, flat, p.d, c));
    for (std::int64_t j = own_keys.first; j < own_keys.end; ++j) {
      Real norm = 0;
      for (std::int64_t c = 0; c < p.d; ++c) {
        norm += square(at(data.v, kv + j, p.d, c));
        largest_key = std::max(largest_key, std::abs(at(data.k, kv + j, p.d, c)));
      }
      longest_value = std::max(longest_value, std::sqrt(norm));
    }
    const Real most_ds = std::sqrt(dout_norm) * longest_value + std::abs(shift);
    const Real flushed2 = square(most_ds * 0x1p-126L / u);
    const Real bound = p.scale * (1 - row.p_sink) * most_ds * largest_key;
    const Real fixed_point = square(0x1p-30L / u * bound) * (1 + static_cast<Real>(row.keys) / 1536);
    for (std::int64_t j = 0; j < p.sk; ++j) {
      const auto jj = static_cast<std::size_t>(j);
      if (!naive::visible(p, i, j)) continue;
      const Real factor = 1 + common + rho2 * tau2[jj];
      const Real ds = row.p[jj] * (dp[jj] + shift);
      const Real p2 = square(row.p[jj]) * factor + eta2;
      const Real ds2 = square(ds) * factor + eta2 + flushed2 +
                       square(row.p[jj]) * (fp32 ? psi2[jj] : rho2 * square(most_ds) / 16);
      for (std::int64_t c = 0; c < p.d; ++c) {
        const auto cc = static_cast<std::size_t>(c);
        const auto key = static_cast<std::size_t>((kv + j) * p.d + c);
        const Real q = at(data.q, flat, p.d, c), k = at(data.k, kv + j, p.d, c);
        const Real v = at(data.v, kv + j, p.d, c), dout = at(data.dout, flat, p.d, c);
        out2[cc] += p2 * square(v);
        dq2[cc] += square(p.scale) * ds2 * square(k);
        dq[cc] += p.scale * ds * k;
        s.dk[key] += square(p.scale) * square(q) * (ds2 + square(row.p[jj]) * sigma_delta2);
        s.dv[key] += p2 * square(dout);
        dk[key] += p.scale * ds * q;
        dv[key] += row.p[jj] * dout;
      }
    }
    for (std::int64_t c = 0; c < p.d; ++c) {
      const auto cc = static_cast<std::size_t>(c);
      const auto element = static_cast<std::size_t>(flat * p.d + c);
      s.out[element] = std::sqrt(out2[cc] + square(out[cc]) * (1 + common) + eta2);
      dq2[cc] += square(p.scale * pk[cc]) * sigma_delta2 + square(dq[cc]) * (1 + common) + eta2;
    }
    for (std::size_t c = 0; c < d; ++c) s.dq[r * d + c] = std::sqrt(dq2[c] + fixed_point);
    const Real term = row.p_sink * shift;
    dsinks[static_cast<std::size_t>(h)] += term;
    // The rows of the sum are those of the document.
    const naive::Extent extent = naive::extent_of(p.cu_q, i, p.sq);
    s.dsinks[static_cast<std::size_t>(h)] +=
        square(row.p_sink) * sigma_delta2 +
        square(term) * (common + rho2 * (1 + static_cast<Real>(extent.end - extent.first) / 16));
  }
  for (std::size_t i = 0; i < dk.size(); ++i) {
    s.dk[i] = std::sqrt(s.dk[i] + square(dk[i]) + eta2);
    s.dv[i] = std::sqrt(s.dv[i] + square(dv[i]) + eta2);
  }
  for (std::size_t h = 0; h < dsinks.size(); ++h) {
    const Real stored = rounding.dsinks_in_16_bits ? 1 : rho2;
    s.dsinks[h] = std::sqrt(s.dsinks[h] + stored * square(dsinks[h]) + square(0x1p-126L / u));
  }
  return s;
}

void expect_close(const std::vector<double>& got, const std::vector<Real>& ref, const char* what) {
  ASSERT_EQ(got.size(), ref.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], static_cast<double>(ref[i]), 1e-10 * static_cast<double>(ref[i]))
        << what << "[" << i << "]";
  }
}

struct SigmaCase {
  const char* name;
  Problem problem;
};

class Sigma : public testing::TestWithParam<SigmaCase> {};

TEST_P(Sigma, FollowsTheEquations) {
  const Format formats[] = {
      {"bf16", {0x1p-8, 0x1p-126, true}}, {"fp16", {0x1p-11, 0x1p-25}}, {"fp32", {0x1p-24, 0x1p-126}}};
  for (const Format& format : formats) {
    SCOPED_TRACE(format.name);
    const naive::Data data = naive::random_data(GetParam().problem, 11);
    const Result result = attention(data.problem, data.inputs(), format.rounding);
    const Sigmas plain = plain_sigmas(data, format.rounding);
    expect_close(result.sigma.out, plain.out, "out");
    expect_close(result.sigma.lse, plain.lse, "lse");
    expect_close(result.sigma.delta, plain.delta, "delta");
    expect_close(result.sigma.dq, plain.dq, "dq");
    expect_close(result.sigma.dk, plain.dk, "dk");
    expect_close(result.sigma.dv, plain.dv, "dv");
    expect_close(result.sigma.dsinks, plain.dsinks, "dsinks");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Masks, Sigma,
    testing::Values(
        SigmaCase{"causal", {.hq = 4, .hkv = 2, .sq = 20, .sk = 20, .d = 8, .scale = 0.3}},
        SigmaCase{"full",
                  {.b = 2, .hq = 2, .hkv = 1, .sq = 9, .sk = 17, .d = 4, .causal = false, .scale = 0.5}},
        SigmaCase{"window", {.hq = 2, .hkv = 2, .sq = 150, .sk = 150, .d = 4, .window = 7, .scale = 0.5}},
        SigmaCase{"more_rows", {.hq = 2, .hkv = 1, .sq = 20, .sk = 9, .d = 4, .scale = 0.5}},
        SigmaCase{"packed",
                  {.hq = 2,
                   .hkv = 1,
                   .sq = 12,
                   .sk = 14,
                   .d = 4,
                   .scale = 0.5,
                   .cu_q = {0, 5, 5, 12},
                   .cu_k = {0, 4, 7, 14}}}),
    [](const auto& test) { return std::string(test.param.name); });

// What makes one scale serve every head: scaling V and dO scales the sigmas with the values.
TEST(SigmaScale, FollowsTheData) {
  const Problem problem{.hq = 2, .hkv = 1, .sq = 30, .sk = 30, .d = 8, .scale = 0.3};
  naive::Data data = naive::random_data(problem, 5, true, false);
  const Result one = attention(problem, data.inputs());
  for (double& x : data.v) x *= 64;
  for (double& x : data.dout) x *= 1024;
  const Result scaled = attention(problem, data.inputs());
  for (std::size_t i = 0; i < one.sigma.dq.size(); ++i)
    ASSERT_NEAR(scaled.sigma.dq[i], 65536 * one.sigma.dq[i], 1e-9 * scaled.sigma.dq[i]);
  for (std::size_t i = 0; i < one.sigma.out.size(); ++i)
    ASSERT_NEAR(scaled.sigma.out[i], 64 * one.sigma.out[i], 1e-9 * scaled.sigma.out[i]);
}

}  // namespace
}  // namespace reference
