// SPDX-License-Identifier: Apache-2.0
// What a head computes with a mistake made, against plain loops that make it.
#include <cmath>
#include <functional>
#include <string>

#include "gtest/gtest.h"

#include "src/explain/cause.hpp"
#include "src/explain/results.hpp"

namespace sinkscope {
namespace {

constexpr double kTolerance = 1e-11;

struct Naive {
  std::vector<double> out, lse, dq, dk, dv;
  double dsink = 0;
};

// Does row i see key j? And what the backward makes of a row: weight and constant of dS, as the function's own rule.
using Sees = std::function<bool(std::int64_t i, std::int64_t j)>;

Naive naive_head(const Case& c, std::int64_t head, std::int64_t kv, double scale, double sink,
                 const Sees& sees, BackwardRule rule = nullptr) {
  const AttentionShape& s = c.problem.shape;
  const auto at = [&](const Tensor& t, std::int64_t h, std::int64_t rows, std::int64_t i,
                      std::int64_t column) { return t.at((h * rows + i) * s.d + column); };
  Naive n;
  for (auto* m : {&n.out, &n.dq}) m->assign(static_cast<std::size_t>(s.sq * s.d), 0);
  for (auto* m : {&n.dk, &n.dv}) m->assign(static_cast<std::size_t>(s.sk * s.d), 0);
  n.lse.assign(static_cast<std::size_t>(s.sq), 0);
  for (std::int64_t i = 0; i < s.sq; ++i) {
    std::vector<double> p(static_cast<std::size_t>(s.sk)), dp(p.size());
    double total = std::exp(sink);
    for (std::int64_t j = 0; j < s.sk; ++j) {
      double logit = 0;
      for (std::int64_t x = 0; x < s.d; ++x) {
        logit += scale * at(c.q, head, s.sq, i, x) * at(c.k, kv, s.sk, j, x);
        dp[static_cast<std::size_t>(j)] += at(c.dout, head, s.sq, i, x) * at(c.v, kv, s.sk, j, x);
      }
      if (sees(i, j)) p[static_cast<std::size_t>(j)] = std::exp(logit);
      total += p[static_cast<std::size_t>(j)];
    }
    double delta = 0;
    for (std::size_t j = 0; j < p.size(); ++j) {
      p[j] /= total;
      delta += p[j] * dp[j];
    }
    const double share = std::exp(sink) / total, lse = std::log(total);
    n.lse[static_cast<std::size_t>(i)] = lse;
    double p_ds = 0;
    for (std::size_t j = 0; j < p.size(); ++j) p_ds += p[j] * p[j] * (dp[j] - delta);
    const RowRule r =
        rule != nullptr ? rule({lse, share, delta, 0, sink, p_ds}) : RowRule{1, -delta, share, -delta};
    n.dsink += r.sink_p * r.sink_constant;
    for (std::int64_t j = 0; j < s.sk; ++j) {
      const double weight = p[static_cast<std::size_t>(j)];
      const double ds = r.weight * weight * (dp[static_cast<std::size_t>(j)] + r.constant);
      for (std::int64_t x = 0; x < s.d; ++x) {
        const auto row = static_cast<std::size_t>(i * s.d + x), key = static_cast<std::size_t>(j * s.d + x);
        n.out[row] += weight * at(c.v, kv, s.sk, j, x);
        n.dq[row] += scale * ds * at(c.k, kv, s.sk, j, x);
        n.dk[key] += scale * ds * at(c.q, head, s.sq, i, x);
        n.dv[key] += r.weight * weight * at(c.dout, head, s.sq, i, x);
      }
    }
  }
  return n;
}

void expect_near(const std::vector<double>& got, const std::vector<double>& ref, const std::string& what) {
  ASSERT_EQ(got.size(), ref.size()) << what;
  double size = 0, worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    size = std::max(size, std::fabs(ref[i]));
    worst = std::max(worst, std::fabs(got[i] - ref[i]));
  }
  EXPECT_LE(worst, kTolerance * size) << what;
}

void expect_same(const HeadResult& got, const Naive& ref, double weight, const std::string& what) {
  expect_near(got.out, ref.out, what + " out");
  expect_near(got.lse, ref.lse, what + " lse");
  expect_near(got.dq, ref.dq, what + " dq");
  expect_near(got.dk, ref.dk, what + " dk");
  expect_near(got.dv, ref.dv, what + " dv");
  double dsink = 0;
  for (const double term : got.dsink) dsink += term;
  EXPECT_NEAR(dsink, weight * ref.dsink, kTolerance * (1 + std::fabs(ref.dsink))) << what;
}

// The function of a head with the n-th variant of a cause.
HeadFunction with(const Case& c, std::int64_t head, const char* id, std::size_t variant = 0) {
  HeadFunction f = right_function(c, head);
  const Probe probe{c, 0, head, f, nullptr};
  const Cause& cause = find_cause(id);
  const Hypothesis hypothesis = cause.hypotheses(cause, probe).at(variant);
  EXPECT_TRUE(hypothesis.apply(f, 0, head)) << id;
  return f;
}

Case generated(const std::string& line) {
  return generate_case(parse_problem(line), "test");
}

TEST(HeadFunction, MasksAreWhatTheySay) {
  const Case c = generated("b1 hq2 hkv1 sq20 sk26 d16 fp32 causal w5 sink=0.5 seed=1");
  const auto own = [](std::int64_t i) { return i + 6; };
  const std::vector<std::tuple<const char*, std::size_t, Sees>> masks = {
      {"window_plus_one", 0, [&](auto i, auto j) { return j <= own(i) && j > own(i) - 6; }},
      {"window_minus_one", 0, [&](auto i, auto j) { return j <= own(i) && j > own(i) - 4; }},
      {"window_ignored", 0, [&](auto i, auto j) { return j <= own(i); }},
      {"window_symmetric", 0, [&](auto i, auto j) { return j < own(i) + 5 && j > own(i) - 5; }},
      {"causal_missing", 0, [&](auto, auto) { return true; }},
      {"causal_missing", 1, [&](auto i, auto j) { return j > own(i) - 5; }},
      {"causal_top_left", 0, [&](auto i, auto j) { return j <= i && j > i - 5; }},
  };
  for (const auto& [id, variant, sees] : masks) {
    const HeadFunction f = with(c, 1, id, variant);
    const double scale = static_cast<float>(c.problem.shape.scale);
    expect_same(evaluate(c, 0, 1, f, true), naive_head(c, 1, 0, scale, c.sinks.at(1), sees), 1, id);
  }
}

TEST(HeadFunction, DocumentsLeakAndMoreRowsThanKeys) {
  const Case packed = generated("b1 hq2 hkv2 sq24 sk24 d16 fp32 causal docs=10,0,14 seed=2");
  const double scale = static_cast<float>(packed.problem.shape.scale);
  expect_same(evaluate(packed, 0, 1, with(packed, 1, "documents_leak"), true),
              naive_head(packed, 1, 1, scale, packed.sinks.at(1), [](auto i, auto j) { return j <= i; }), 1,
              "leak");
  const Case tall = generated("b1 hq1 hkv1 sq24 sk15 d16 fp32 causal seed=3");
  expect_same(evaluate(tall, 0, 0, with(tall, 0, "causal_top_left"), true),
              naive_head(tall, 0, 0, scale, tall.sinks.at(0), [](auto i, auto j) { return j <= i; }), 1,
              "top left");
}

TEST(HeadFunction, BackwardRulesAreWhatTheySay) {
  const Case c = generated("b1 hq2 hkv1 sq20 sk20 d16 fp32 causal sink=1 seed=4");
  const double scale = static_cast<float>(c.problem.shape.scale);
  const Sees causal = [](auto i, auto j) { return j <= i; };
  const std::vector<std::tuple<const char*, std::size_t, BackwardRule>> rules = {
      {"dlse_dropped", 0,
       [](const RowState& r) {
         return RowRule{1, -r.delta / (1 - r.p), r.p, -r.delta};
       }},
      {"delta_uncorrected", 0,
       [](const RowState& r) {
         return RowRule{1, -r.delta / (1 - r.p), r.p, -r.delta / (1 - r.p)};
       }},
      {"lse_without_sink", 0,
       [](const RowState& r) {
         return RowRule{1 / (1 - r.p), -r.delta, r.p, -r.delta};
       }},
      {"lse_log2", 0,
       [](const RowState& r) {
         return RowRule{std::exp(r.lse - r.lse / std::log(2.0)), -r.delta, r.p, -r.delta};
       }},
      {"dsink_from_ds", 0,
       [](const RowState& r) {
         return RowRule{1, -r.delta, r.p, -r.p_ds};
       }},
  };
  for (const auto& [id, variant, rule] : rules) {
    expect_same(evaluate(c, 0, 1, with(c, 1, id, variant), true),
                naive_head(c, 1, 0, scale, c.sinks.at(1), causal, rule), 1, id);
  }
}

// Functions that share a forward, evaluated together, are what each is alone: rows of one part and of several.
TEST(HeadFunction, TogetherIsAsAlone) {
  for (const char* line : {"b1 hq2 hkv1 sq20 sk20 d16 bf16 causal sink=1 seed=4",
                           "b1 hq2 hkv1 sq20 sk20 d16 bf16 causal docs=8,12 sink=1 seed=4"}) {
    const Case c = generated(line);
    std::vector<FunctionPtr> functions = {std::make_shared<HeadFunction>(right_function(c, 1))};
    for (const auto& [id, variant] :
         {std::pair("dlse_dropped", 0), std::pair("dlse_dropped", 1), std::pair("delta_uncorrected", 0),
          std::pair("lse_without_sink", 0), std::pair("lse_log2", 4), std::pair("dsink_from_ds", 0)}) {
      functions.push_back(std::make_shared<HeadFunction>(with(c, 1, id, static_cast<std::size_t>(variant))));
      ASSERT_TRUE(have_same_forward(*functions.front(), *functions.back())) << id;
    }
    EXPECT_FALSE(have_same_forward(*functions.front(), with(c, 1, "sink_twice")));
    EXPECT_FALSE(have_same_forward(*functions.front(), with(c, 1, "causal_missing")));
    EXPECT_FALSE(have_same_forward(*functions.front(), with(c, 1, "scale_missing")));
    const std::vector<HeadResult> together = evaluate_alike(c, 0, 1, functions, true);
    for (std::size_t i = 0; i < functions.size(); ++i) {
      const HeadResult alone = evaluate(c, 0, 1, *functions[i], true);
      for (const auto member : {&HeadResult::out, &HeadResult::lse, &HeadResult::dq, &HeadResult::dk,
                                &HeadResult::dv, &HeadResult::dsink, &HeadResult::sigma_out,
                                &HeadResult::sigma_dq, &HeadResult::sigma2_dk, &HeadResult::sigma2_dsink}) {
        expect_near(together[i].*member, alone.*member, functions[i]->key + " " + line);
      }
    }
  }
}

TEST(HeadFunction, SinksScalesAndHeadsAreWhatTheySay) {
  const Case c = generated("b1 hq4 hkv2 sq20 sk20 d16 fp32 causal seed=5");
  const double scale = static_cast<float>(c.problem.shape.scale), sink = c.sinks.at(1);
  const Sees causal = [](auto i, auto j) { return j <= i; };
  const auto expect = [&](const char* id, std::int64_t kv, double of_scale, double of_sink, double weight) {
    expect_same(evaluate(c, 0, 1, with(c, 1, id), true), naive_head(c, 1, kv, of_scale, of_sink, causal),
                weight, id);
  };
  expect("sink_ignored", 0, scale, -INFINITY, 1);
  expect("sink_zero_added", 0, scale, 0, 1);
  expect("sink_scaled", 0, scale, scale * sink, scale);
  expect("sink_log2", 0, scale, std::log(2.0) * sink, std::log(2.0));
  expect("sink_twice", 0, scale, sink + std::log(2.0), 1);
  expect("scale_missing", 0, 1, sink, 1);
  expect("scale_squared", 0, scale * scale, sink, 1);
  expect("gqa_interleaved", 1, scale, sink, 1);
}

// Rows of padding whose dout is left in: in every gradient, or in the sink's alone.
TEST(HeadFunction, PaddingIsCountedWhereItSays) {
  const Case c = generated("b1 hq2 hkv1 sq20 sk20 d16 fp32 causal sink=1 seqlens=13 seed=7");
  Case whole = c;
  whole.dout = c.padded_dout;
  const double scale = static_cast<float>(c.problem.shape.scale);
  const Sees causal = [](auto i, auto j) { return j <= i; };
  Naive right = naive_head(c, 1, 0, scale, c.sinks.at(1), causal);
  const Naive counted = naive_head(whole, 1, 0, scale, c.sinks.at(1), causal);
  EXPECT_GT(std::fabs(right.dsink - counted.dsink), 0.01);
  expect_same(evaluate(c, 0, 1, right_function(c, 1), true), right, 1, "left out");
  expect_same(evaluate(c, 0, 1, with(c, 1, "dsink_padding", 1), true), counted, 1, "in every gradient");
  right.dsink = counted.dsink;
  expect_same(evaluate(c, 0, 1, with(c, 1, "dsink_padding", 0), true), right, 1, "in dsinks");
}

// A cap bounds each logit; its slope goes into dS.
TEST(HeadFunction, SoftcapIsWhatItSays) {
  const Case c = generated("b1 hq2 hkv1 sq12 sk14 d16 fp32 causal w9 seed=7");
  HeadFunction f = right_function(c, 1);
  f.softcap = 1.5;
  const HeadResult got = evaluate(c, 0, 1, f, true);
  // dq and dk by central differences of sum dO . O, out itself by plain loops.
  const auto out_of = [&](const Case& at) {
    const AttentionShape& s = at.problem.shape;
    std::vector<double> out;
    for (std::int64_t i = 0; i < s.sq; ++i) {
      double total = std::exp(at.sinks.at(1));
      std::vector<double> row(static_cast<std::size_t>(s.d));
      for (std::int64_t j = std::max<std::int64_t>(0, i + 3 - 9); j <= i + 2; ++j) {
        double logit = 0;
        for (std::int64_t x = 0; x < s.d; ++x)
          logit += at.q.at(((s.sq + i) * s.d) + x) * at.k.at(j * s.d + x);
        const double e = std::exp(1.5 * std::tanh(static_cast<float>(s.scale) * logit / 1.5));
        total += e;
        for (std::int64_t x = 0; x < s.d; ++x) row[static_cast<std::size_t>(x)] += e * at.v.at(j * s.d + x);
      }
      for (const double value : row) out.push_back(value / total);
    }
    return out;
  };
  expect_near(got.out, out_of(c), "softcap out");
  const auto loss = [&](const Case& at) {
    const std::vector<double> out = out_of(at);
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i)
      sum += out[i] * c.dout.at(static_cast<std::int64_t>(out.size() + i));
    return sum;
  };
  constexpr double kStep = 0x1p-10;
  const auto slope = [&](Tensor Case::*input, std::int64_t i) {
    Case up = c, down = c;
    (up.*input) = Tensor::rounded(DType::kFp64, (c.*input).shape(), (c.*input).widened());
    (down.*input) = up.*input;
    (up.*input).set(i, (up.*input).at(i) + kStep);
    (down.*input).set(i, (down.*input).at(i) - kStep);
    return (loss(up) - loss(down)) / (2 * kStep);
  };
  for (std::int64_t i = 0; i < 12 * 16; i += 7) {
    EXPECT_NEAR(got.dq[static_cast<std::size_t>(i)], slope(&Case::q, 12 * 16 + i), 2e-5) << i;
    EXPECT_NEAR(got.dk[static_cast<std::size_t>(i)], slope(&Case::k, i), 2e-5) << i;
    EXPECT_NEAR(got.dv[static_cast<std::size_t>(i)], slope(&Case::v, i), 2e-5) << i;
  }
}

// A cap that bounds nothing leaves values and, but for terms of fp32, sigmas.
TEST(HeadFunction, SoftcapHasTheSigmasOfTheReference) {
  const Case c = generated("b1 hq1 hkv1 sq70 sk90 d32 bf16 causal seed=8");
  HeadFunction f = right_function(c, 0);
  const HeadResult right = evaluate(c, 0, 0, f, true);
  f.softcap = 1e7;
  const HeadResult capped = evaluate(c, 0, 0, f, true);
  const auto expect_ratio = [](const std::vector<double>& a, const std::vector<double>& b, const char* what) {
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (b[i] == 0) continue;
      EXPECT_NEAR(a[i] / b[i], 1, 0.02) << what << " " << i;
    }
  };
  expect_near(capped.lse, right.lse, "lse");
  expect_ratio(capped.sigma_out, right.sigma_out, "out");
  expect_ratio(capped.sigma_dq, right.sigma_dq, "dq");
  expect_ratio(capped.sigma2_dk, right.sigma2_dk, "dk");
  expect_ratio(capped.sigma2_dv, right.sigma2_dv, "dv");
  expect_ratio(capped.sigma2_dsink, right.sigma2_dsink, "dsink");
}

TEST(HeadFunction, SomeRowsAloneAreTheSameRows) {
  const Case c = generated("b1 hq1 hkv1 sq40 sk47 d16 fp32 causal w9 seed=6");
  for (const char* id :
       {"sink_twice", "window_symmetric", "window_ignored", "causal_missing", "causal_top_left"}) {
    const HeadFunction f = with(c, 0, id);
    const HeadResult all = evaluate(c, 0, 0, f, true);
    const Range rows{13, 22};
    const HeadResult some = evaluate(c, 0, 0, only_rows(f, rows), true);
    for (std::int64_t i = rows.first * 16; i < rows.end * 16; ++i) {
      const auto at = static_cast<std::size_t>(i);
      EXPECT_NEAR(some.out[at], all.out[at], 1e-12) << id;
      EXPECT_NEAR(some.dq[at], all.dq[at], 1e-12) << id;
      EXPECT_NEAR(some.sigma_out[at] / all.sigma_out[at], 1, 1e-9) << id;
    }
  }
}

}  // namespace
}  // namespace sinkscope
