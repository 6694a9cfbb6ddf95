// SPDX-License-Identifier: Apache-2.0
#include "src/explain/stage_info.hpp"

#include <stdexcept>

#include "fmt/format.h"

namespace sinkscope {

const std::vector<StageInfo>& all_stages() {
  static constexpr std::string_view kNone = "no mistake",
                                    kScores =
                                        "no mistake: a path that keeps its scores in fp32 is more exact";
  static const std::vector<StageInfo> kStages = {
      {"tf32", "products in tf32", "products take fp32 operands in tf32",
       "turn tf32 off where fp32 is meant"},
      {"bf16", "products in bf16", "products take fp32 operands in bf16",
       "turn autocast off where fp32 is meant"},
      {"fp16", "products in fp16", "products take fp32 operands in fp16",
       "turn autocast off where fp32 is meant"},
      {"inputs", "scaled q", "q is scaled and rounded before it multiplies K",
       "no mistake: scaling the fp32 logits is more exact"},
      {"s", "logits", "the logits are rounded", kScores},
      {"softmax", "softmax", "the probabilities are rounded wherever they are used", kScores},
      {"lse", "the path's own LSE", "the backward's P is made from the path's own LSE", kNone},
      {"p", "P", "P is rounded before it multiplies V or dO", kNone},
      {"delta", "Delta from the rounded out", "Delta is taken from the rounded out",
       "no mistake: a backward that is given out's rounding residual is more exact"},
      {"delta_rounded", "Delta's own rounding", "Delta is rounded itself",
       "no mistake: a Delta in fp32 is more exact"},
      {"dp", "dP", "dP is rounded", kScores},
      {"ds", "dS", "dS is rounded before it multiplies K and Q", kNone},
      {"accumulate", "sums in 16 bits", "sums of products are kept in 16 bits",
       "keep sums of products in fp32"},
      {"group", "parts of a group", "each query head's dK and dV are rounded before their group is summed",
       "no mistake: sums over a group in fp32 are more exact"},
      {"output", "output", "the result is rounded to its format", kNone},
      {"softmax_bf16", "softmax in bf16", "logits, softmax and dP are written out in bf16", kScores},
      {"softmax_fp16", "softmax in fp16", "logits, softmax and dP are written out in fp16", kScores},
      {"logits_bf16", "logits in bf16", "logits and dP are written out in bf16, before an fp32 softmax",
       kScores},
      {"logits_fp16", "logits in fp16", "logits and dP are written out in fp16, before an fp32 softmax",
       kScores},
  };
  return kStages;
}

const StageInfo& stage_info(std::string_view id) {
  for (const StageInfo& info : all_stages()) {
    if (info.id == id) return info;
  }
  throw std::logic_error(fmt::format("no stage is called {}", id));
}

}  // namespace sinkscope
