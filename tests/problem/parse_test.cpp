// SPDX-License-Identifier: Apache-2.0
// Problem lines: what is printed is parsed back, and every error shows its token.
#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "gtest/gtest.h"

#include "src/core/error.hpp"
#include "src/problem/problem.hpp"

namespace sinkscope {
namespace {

class RandomProblems {
 public:
  explicit RandomProblems(unsigned seed) : engine_(seed) {}

  Problem next() {
    Problem p;
    if (one_in(8)) p.capture = "a folder/with#odd \\names" + std::to_string(below(100)) + ".safetensors";
    if (p.capture.empty()) {
      fill_shape(p.shape);
      p.sink = static_cast<SinkKind>(below(4));
      if (p.sink == SinkKind::kValue) p.sink_value = real();
      p.sink_dtype = static_cast<DType>(one_in(3) ? below(3) : 2);
      if (p.sink == SinkKind::kValue && std::fabs(p.sink_value) > 6e4 && std::isfinite(p.sink_value)) {
        p.sink_dtype = DType::kFp32;
      }
      p.fill = all_fills()[below(all_fills().size())];
      p.seed = one_in(2) ? engine_() : below(100);
    }
    p.layout = static_cast<Layout>(below(2));
    p.grads = {one_in(2), one_in(2), one_in(2), one_in(2)};
    p.dlse = p.capture.empty() && p.grads.any() && one_in(3);
    p.residual = p.shape.dtype != DType::kFp32 && one_in(3);
    return p;
  }

 private:
  std::uint64_t below(std::uint64_t n) { return engine_() % n; }
  bool one_in(std::uint64_t n) { return below(n) == 0; }
  std::int64_t from_one(std::uint64_t most) { return static_cast<std::int64_t>(1 + below(most)); }

  // Any finite float, 0, or an infinity.
  double real() {
    if (one_in(6)) return (one_in(2) ? -1 : 1) * std::numeric_limits<double>::infinity();
    if (one_in(6)) return 0;
    const double mantissa = static_cast<double>(static_cast<std::int64_t>(engine_())) * 0x1p-63;
    return std::ldexp(mantissa, static_cast<int>(below(60)) - 30);
  }

  void fill_shape(AttentionShape& s) {
    s.hkv = from_one(8);
    s.hq = s.hkv * from_one(8);
    s.d = from_one(256);
    s.dtype = static_cast<DType>(below(3));
    s.causal = !one_in(3);
    if (s.causal && one_in(2)) s.window = from_one(300);
    s.scale = 1 / std::sqrt(static_cast<double>(s.d));
    if (one_in(3)) s.scale = one_in(4) ? 0 : std::ldexp(static_cast<double>(below(1 << 30)), -28);
    s.b = from_one(4);
    s.sq = from_one(5000);
    s.sk = one_in(2) ? s.sq : from_one(5000);
    if (s.causal && s.sq == s.sk && one_in(3)) {
      for (std::int64_t i = 0; i < s.b; ++i) s.seqlens.push_back(below(s.sq + 1));
      return;
    }
    if (!one_in(3)) return;
    s.b = 1;
    s.docs.resize(1 + below(5));
    for (std::int64_t& length : s.docs) length = from_one(400);
    if (one_in(2)) s.docs_k = s.docs;
    for (std::int64_t& length : s.docs_k) length = from_one(400);
    s.sq = s.cu_q().back();
    s.sk = s.cu_k().back();
  }

  std::mt19937_64 engine_;
};

TEST(ProblemLine, ParsesWhatItPrints) {
  RandomProblems problems(1);
  for (int i = 0; i < 5000; ++i) {
    const Problem p = problems.next();
    ASSERT_EQ(parse_problem(to_string(p)), p) << to_string(p);
    ASSERT_EQ(parse_problem(to_string(p, true)), p) << to_string(p, true);
  }
}

TEST(ProblemLine, PrintsThisWay) {
  EXPECT_EQ(to_string(parse_problem("hq64 hkv8 sq4096 w128 seed=7")),
            "b1 hq64 hkv8 sq4096 sk4096 d64 bf16 causal w128 seed=7");
  EXPECT_EQ(to_string(parse_problem("d64 fp16 full sink=none scale=0.125 layout=bhsd seed=0")),
            "b1 hq8 hkv8 sq512 sk512 d64 fp16 full sink=none");
  EXPECT_EQ(to_string(parse_problem("docs=100,37,375 sink=-inf dlse grads=s,q residual")),
            "b1 hq8 hkv8 sq512 sk512 d64 bf16 causal docs=100,37,375 sink=-inf dlse grads=q,s residual");
  EXPECT_EQ(to_string(parse_problem("sq8 d4"), true),
            "b1 hq8 hkv8 sq8 sk8 d4 bf16 causal sink=normal sink_dtype=fp32 scale=0.5 layout=bhsd "
            "grads=q,k,v,s fill=gaussian seed=0");
  EXPECT_EQ(to_string(parse_problem("layout=bshd capture=a\\ b.safetensors")),
            "capture=a\\ b.safetensors layout=bshd");
}

TEST(ProblemLine, HasTheDocumentedDefaults) {
  const Problem p = parse_problem("b1");

  EXPECT_EQ(p, Problem());
  EXPECT_EQ(p.shape.scale, 0.125);
  EXPECT_EQ(parse_problem("hq6").shape.hkv, 6);
  EXPECT_EQ(parse_problem("sq7").shape.sk, 7);
  EXPECT_EQ(parse_problem("d16").shape.scale, 0.25);
}

TEST(ProblemLine, DocumentsImplyLengths) {
  const Problem p = parse_problem("docs=3,0,4 docs_k=5,1,2");

  EXPECT_EQ(p.shape.sq, 7);
  EXPECT_EQ(p.shape.sk, 8);
  EXPECT_EQ(p.shape.cu_q(), (std::vector<std::int64_t>{0, 3, 3, 7}));
  EXPECT_EQ(p.shape.cu_k(), (std::vector<std::int64_t>{0, 5, 6, 8}));
}

struct Wrong {
  const char* line;
  const char* shown;  // in the message
};

void PrintTo(const Wrong& wrong, std::ostream* out) {
  *out << wrong.line;
}

class WrongLine : public testing::TestWithParam<Wrong> {};

TEST_P(WrongLine, IsRefusedShowingTheToken) {
  try {
    const Problem p = parse_problem(GetParam().line);
    FAIL() << "parsed as " << to_string(p);
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find(GetParam().shown), std::string::npos) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Tokens, WrongLine,
    testing::Values(
        Wrong{"", "empty"}, Wrong{"  \t ", "empty"}, Wrong{"b1 fp8", "'fp8'"},
        Wrong{"window=3", "'window=3'"}, Wrong{"8", "'8'"}, Wrong{"B8", "'B8'"}, Wrong{"b", "'b'"},
        Wrong{"b0", "'b0'"}, Wrong{"w0", "'w0'"}, Wrong{"hq-8", "'hq-8'"}, Wrong{"sq5x", "'sq5x'"},
        Wrong{"sq5.5", "'sq5.5'"}, Wrong{"sq99999999999999999999", "'sq99999999999999999999'"},
        Wrong{"sq2147483648", "'sq2147483648'"}, Wrong{"d257", "'d257'"}, Wrong{"d0", "'d0'"},
        Wrong{"seed=-1", "'seed=-1'"}, Wrong{"seed=", "'seed='"},
        Wrong{"seed=18446744073709551616", "'seed=18446744073709551616'"}, Wrong{"scale=abc", "'scale=abc'"},
        Wrong{"scale=nan", "'scale=nan'"}, Wrong{"scale=1e999", "'scale=1e999'"},
        Wrong{"sink=nan", "'sink=nan'"}, Wrong{"sink=one", "'sink=one'"},
        Wrong{"sink_dtype=fp64", "'sink_dtype=fp64'"}, Wrong{"layout=hbsd", "'layout=hbsd'"},
        Wrong{"fill=uniform", "'fill=uniform'"}, Wrong{"grads=q,q", "'grads=q,q'"},
        Wrong{"grads=", "'grads='"}, Wrong{"grads=x", "'grads=x'"}, Wrong{"docs=1,,2", "'docs=1,,2'"},
        Wrong{"docs=-1", "'docs=-1'"}, Wrong{"capture=", "'capture='"}, Wrong{"dlse=1", "'dlse=1'"}));

INSTANTIATE_TEST_SUITE_P(Repeated, WrongLine,
                         testing::Values(Wrong{"b1 b1", "'b1' repeats b"},
                                         Wrong{"bf16 fp16", "'fp16' repeats the format"},
                                         Wrong{"full causal", "'causal' repeats the mask"},
                                         Wrong{"dlse dlse", "'dlse'"}, Wrong{"seed=1 seed=2", "'seed=2'"},
                                         Wrong{"capture=a capture=b", "'capture=b'"}));

INSTANTIATE_TEST_SUITE_P(
    Impossible, WrongLine,
    testing::Values(Wrong{"hq8 hkv3", "hq8 is not a multiple of hkv3"}, Wrong{"hq4 hkv8", "hkv8"},
                    Wrong{"full w128", "w128"}, Wrong{"docs=8,8 b2", "b2"},
                    Wrong{"docs=8,8 sq17", "sq is 17"}, Wrong{"docs=8,8 sk17", "sk is 17"},
                    Wrong{"docs_k=8,8", "docs_k=8,8"}, Wrong{"docs=8,8 docs_k=16", "docs_k= has 1"},
                    Wrong{"docs=0,0", "sq0"}, Wrong{"docs=5 docs_k=0", "sk0"},
                    Wrong{"b2 seqlens=5", "has 1 lengths, wanted one for each of b2"},
                    Wrong{"sq9 seqlens=10", "has 10, wanted lengths from 0 to sq, 9"},
                    Wrong{"full seqlens=5", "needs causal"}, Wrong{"sq9 sk10 seqlens=5", "saw sq9 sk10"},
                    Wrong{"docs=4,5 seqlens=5", "exclude each other"}, Wrong{"fp32 residual", "residual"},
                    Wrong{"scale=inf", "scale=inf"}, Wrong{"scale=1e31", "scale=1e+31"},
                    Wrong{"sink=1e5 sink_dtype=fp16", "sink=100000"}, Wrong{"dlse grads=none", "grads=none"},
                    Wrong{"b1048576 hq65536 hkv1 sq2147483647", "TiB"}, Wrong{"hq65536 sq131073 sk1", "TiB"},
                    Wrong{"capture=a sq5", "'sq5'"}, Wrong{"fill=ties capture=a", "'fill=ties'"},
                    Wrong{"capture=a dlse", "'dlse'"}, Wrong{"capture=a causal", "'causal'"}));

TEST(CheckProblem, RefusesSizesThatNoLineHas) {
  Problem p;
  p.shape.hkv = 0;
  EXPECT_THROW(check_problem(p), InputError);
  p = Problem();
  p.shape.window = -1;
  EXPECT_THROW(check_problem(p), InputError);
  p = Problem();
  p.shape.scale = std::nan("");
  EXPECT_THROW(check_problem(p), InputError);
}

}  // namespace
}  // namespace sinkscope
