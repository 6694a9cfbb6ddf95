// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "fmt/format.h"
#include "fmt/ranges.h"

#include "src/problem/problem.hpp"
#include "src/problem/tokens.hpp"

namespace sinkscope {
namespace {

std::string sink_text(const Problem& p) {
  switch (p.sink) {
    case SinkKind::kNormal:
      return "normal";
    case SinkKind::kNone:
      return "none";
    case SinkKind::kExtreme:
      return "extreme";
    case SinkKind::kValue:
      break;
  }
  return fmt::format("{}", p.sink_value);
}

std::string grads_text(const Grads& grads) {
  std::vector<std::string_view> wanted;
  if (grads.q) wanted.emplace_back("q");
  if (grads.k) wanted.emplace_back("k");
  if (grads.v) wanted.emplace_back("v");
  if (grads.s) wanted.emplace_back("s");
  return wanted.empty() ? "none" : fmt::format("{}", fmt::join(wanted, ","));
}

std::vector<std::int64_t> offsets(const std::vector<std::int64_t>& lengths) {
  if (lengths.empty()) return {};
  std::vector<std::int64_t> cu = {0};
  for (const std::int64_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

}  // namespace

std::vector<std::int64_t> AttentionShape::cu_q() const {
  return offsets(docs);
}
std::vector<std::int64_t> AttentionShape::cu_k() const {
  return offsets(docs_k.empty() ? docs : docs_k);
}

std::vector<DocumentSize> AttentionShape::documents() const {
  if (docs.empty()) return {{sq, sk}};
  const std::vector<std::int64_t>& keys = docs_k.empty() ? docs : docs_k;
  std::vector<DocumentSize> sizes;
  for (std::size_t i = 0; i < docs.size(); ++i) sizes.push_back({docs[i], keys[i]});
  return sizes;
}

std::string to_string(const Problem& p, bool canonical) {
  const Problem defaults;
  const AttentionShape& s = p.shape;
  std::vector<std::string> tokens;
  if (!p.capture.empty()) {
    tokens.push_back("capture=" + quoted(p.capture));
  } else {
    tokens.push_back(fmt::format("b{} hq{} hkv{} sq{} sk{} d{} {} {}", s.b, s.hq, s.hkv, s.sq, s.sk, s.d,
                                 name_of(s.dtype), s.causal ? "causal" : "full"));
    if (s.window > 0) tokens.push_back(fmt::format("w{}", s.window));
    if (!s.docs.empty()) tokens.push_back(fmt::format("docs={}", fmt::join(s.docs, ",")));
    if (!s.docs_k.empty()) tokens.push_back(fmt::format("docs_k={}", fmt::join(s.docs_k, ",")));
    if (!s.seqlens.empty()) tokens.push_back(fmt::format("seqlens={}", fmt::join(s.seqlens, ",")));
    if (canonical || p.sink != defaults.sink) tokens.push_back("sink=" + sink_text(p));
    if (canonical || p.sink_dtype != defaults.sink_dtype) {
      tokens.push_back(fmt::format("sink_dtype={}", name_of(p.sink_dtype)));
    }
    if (canonical || s.scale != default_scale(s.d)) tokens.push_back(fmt::format("scale={}", s.scale));
    if (p.dlse) tokens.emplace_back("dlse");
  }
  if (canonical || p.layout != defaults.layout) tokens.push_back(fmt::format("layout={}", name_of(p.layout)));
  if (canonical || p.grads != defaults.grads) tokens.push_back("grads=" + grads_text(p.grads));
  if (p.residual) tokens.emplace_back("residual");
  if (p.capture.empty()) {
    if (canonical || p.fill != defaults.fill) tokens.push_back(fmt::format("fill={}", name_of(p.fill)));
    if (canonical || p.seed != defaults.seed) tokens.push_back(fmt::format("seed={}", p.seed));
  }
  return fmt::format("{}", fmt::join(tokens, " "));
}

}  // namespace sinkscope
