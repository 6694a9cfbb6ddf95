// SPDX-License-Identifier: Apache-2.0
#include "src/compare/truth_kind.hpp"

#include "fmt/format.h"

#include "src/core/error.hpp"
#include "src/torch/module.hpp"

namespace sinkscope {

std::string_view name_of(TruthKind kind) {
  return kind == TruthKind::kCuda ? "cuda" : "eigen";
}

std::string unavailable(TruthKind kind) {
  if (kind == TruthKind::kEigen) return "";
  const TorchModule& torch = torch_module();
  return torch.unavailable.empty() ? torch.cuda_unavailable : torch.unavailable;
}

void require_available(TruthKind kind) {
  if (const std::string reason = unavailable(kind); !reason.empty())
    throw EnvironmentError(fmt::format("--truth {} needs a GPU: {}", name_of(kind), reason));
}

Truth truth_of(const Case& c, TruthKind kind, int threads) {
  require_available(kind);
  return kind == TruthKind::kCuda ? torch_module().cuda_truth(c) : compute_truth(c, threads);
}

}  // namespace sinkscope
