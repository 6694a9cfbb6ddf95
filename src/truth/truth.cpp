// SPDX-License-Identifier: Apache-2.0
#include "src/truth/truth.hpp"

namespace sinkscope {

Truth compute_truth(const Case& c, int threads) {
  const AttentionShape& s = c.problem.shape;
  const double scale = static_cast<float>(s.scale);  // as every path takes it
  const reference::Problem problem = {s.b,      s.hq,     s.hkv, s.sq,     s.sk,    s.d,
                                      s.causal, s.window, scale, s.cu_q(), s.cu_k()};
  const std::vector<double> q = c.q.widened();
  const std::vector<double> k = c.k.widened();
  const std::vector<double> v = c.v.widened();
  const std::vector<double> sinks = c.sinks.widened();
  const std::vector<double> dout = c.dout.widened();
  const std::vector<double> dlse = c.dlse.widened();
  const reference::Rounding rounding = {unit_roundoff(s.dtype), underflow_unit(s.dtype)};
  return reference::attention(problem, {q, k, v, sinks, dout, dlse}, rounding, {threads});
}

const std::vector<double>& values_of(const reference::Tensors& tensors, TensorName name) {
  switch (name) {
    case TensorName::kOut:
      return tensors.out;
    case TensorName::kLse:
      return tensors.lse;
    case TensorName::kDq:
      return tensors.dq;
    case TensorName::kDk:
      return tensors.dk;
    case TensorName::kDv:
      return tensors.dv;
    case TensorName::kDsinks:
      break;
  }
  return tensors.dsinks;
}

}  // namespace sinkscope
