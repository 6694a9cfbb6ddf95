// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <string>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/core/error.hpp"
#include "src/core/tensor.hpp"
#include "src/problem/problem.hpp"
#include "src/problem/tokens.hpp"

namespace sinkscope {
namespace {

constexpr double kMostTensorBytes = 0x1p40;
constexpr double kMostScale = 1e30;  // fp32 holds it with room for the logits

void require(bool condition, const auto& message) {
  if (!condition) throw InputError(fmt::format("impossible problem: {}", message()));
}

// Every size on its own, then the largest tensor.
void check_sizes(const AttentionShape& s) {
  struct Size {
    const char* name;
    std::int64_t value, most;
  };
  for (const Size& size :
       {Size{"b", s.b, kMostBatch}, Size{"hq", s.hq, kMostHeads}, Size{"hkv", s.hkv, kMostHeads},
        Size{"sq", s.sq, kMostRows}, Size{"sk", s.sk, kMostRows}, Size{"d", s.d, kMostHeadDim}}) {
    require(size.value >= 1 && size.value <= size.most, [&] {
      return fmt::format("{}{}, wanted {} from 1 to {}", size.name, size.value, size.name, size.most);
    });
  }
  const auto check_tensor = [&](std::int64_t heads, std::int64_t rows) {
    const double bytes = static_cast<double>(s.b) * static_cast<double>(heads) * static_cast<double>(rows) *
                         static_cast<double>(s.d) * static_cast<double>(size_of(s.dtype));
    require(bytes <= kMostTensorBytes, [&] {
      return fmt::format("a tensor [{}, {}, {}, {}] in {} needs {:.4g} TiB, wanted at most 1", s.b, heads,
                         rows, s.d, name_of(s.dtype), bytes / 0x1p40);
    });
  };
  check_tensor(s.hq, s.sq);
  check_tensor(s.hkv, s.sk);
}

void check_sink(const Problem& p) {
  require(!std::isnan(p.sink_value), [] { return std::string("sink=nan; a sink is a number, inf or -inf"); });
  const double rounded = Tensor::rounded(p.sink_dtype, {1}, {&p.sink_value, 1}).at(0);
  require(std::isinf(rounded) == std::isinf(p.sink_value), [&] {
    return fmt::format("sink={} overflows sink_dtype={}; sink=inf says so", p.sink_value,
                       name_of(p.sink_dtype));
  });
}

// Packed documents: one batch entry, as many key lengths as lengths, both adding up.
void check_documents(const AttentionShape& s) {
  if (s.docs.empty()) {
    require(s.docs_k.empty(),
            [&] { return fmt::format("docs_k={} without docs=", fmt::join(s.docs_k, ",")); });
    return;
  }
  const std::vector<std::int64_t>& keys = s.docs_k.empty() ? s.docs : s.docs_k;
  require(s.b == 1,
          [&] { return fmt::format("docs= needs b1 (a packed row is one batch entry), saw b{}", s.b); });
  require(keys.size() == s.docs.size(),
          [&] { return fmt::format("docs= has {} documents, docs_k= has {}", s.docs.size(), keys.size()); });
  require(total_of(s.docs) == s.sq,
          [&] { return fmt::format("docs= add up to {}, sq is {}", total_of(s.docs), s.sq); });
  require(total_of(keys) == s.sk,
          [&] { return fmt::format("documents have {} keys, sk is {}", total_of(keys), s.sk); });
}

// Padding at the end of batch entries. Where every row's own key is at its own place and nothing later is seen, no real row
// sees padding, whatever a path does about it.
void check_seqlens(const AttentionShape& s) {
  if (s.seqlens.empty()) return;
  require(static_cast<std::int64_t>(s.seqlens.size()) == s.b, [&] {
    return fmt::format("seqlens= has {} lengths, wanted one for each of b{}", s.seqlens.size(), s.b);
  });
  for (const std::int64_t length : s.seqlens) {
    require(length >= 0 && length <= s.sq,
            [&] { return fmt::format("seqlens= has {}, wanted lengths from 0 to sq, {}", length, s.sq); });
  }
  require(s.causal, [] { return std::string("seqlens= needs causal, saw full"); });
  require(s.sq == s.sk,
          [&] { return fmt::format("seqlens= needs as many keys as rows, saw sq{} sk{}", s.sq, s.sk); });
  require(s.docs.empty(), [] { return std::string("seqlens= and docs= exclude each other"); });
}

}  // namespace

void check_problem(const Problem& p) {
  const AttentionShape& s = p.shape;
  check_sizes(s);
  require(s.hq % s.hkv == 0, [&] { return fmt::format("hq{} is not a multiple of hkv{}", s.hq, s.hkv); });
  require(s.window == 0 || s.causal, [&] { return fmt::format("w{} needs causal, saw full", s.window); });
  require(s.window >= 0 && s.window <= kMostRows,
          [&] { return fmt::format("w{}, wanted a window from 1 to {}", s.window, kMostRows); });
  require(std::fabs(s.scale) <= kMostScale, [&] {
    return fmt::format("scale={}, wanted a number from {:g} to {:g}", s.scale, -kMostScale, kMostScale);
  });
  check_sink(p);
  require(!p.dlse || p.grads.any() || !p.capture.empty(),
          [] { return std::string("dlse needs gradients, saw grads=none"); });
  require(!p.residual || s.dtype != DType::kFp32,
          [] { return std::string("residual needs bf16 or fp16, saw fp32"); });
  check_documents(s);
  check_seqlens(s);
}

}  // namespace sinkscope
