// SPDX-License-Identifier: Apache-2.0
// What other projects' tests assert, applied to one output: whole tensors, against a reference that is rounded to the
// judged format.
#pragma once

#include "src/inputs/case.hpp"
#include "src/truth/truth.hpp"

namespace sinkscope {

// Does the criterion fail the tensor, or an output that was asked for and is not there? NaN fails.
struct PeerVerdicts {
  bool flash_attention = false;  // false for lse, which its tests do not look at, and without eager
  bool allclose = false;         // torch.allclose(got, ref): rtol 1e-5, atol 1e-8
  bool assert_close = false;     // torch.testing.assert_close(got, ref): by format
  bool cosine = false;           // of the whole tensor under 0.99

  void operator|=(const PeerVerdicts& other);
};

// flash-attention (hopper/test_flash_attn.py, tests/cute/test_flash_attn.py): max |x - r| <= 2 max |b - r| +
// 2 max |r + 0.3 - 0.3 - r|; of dsinks each |x - r| <= 2 max |b - r| + 2 last places of r. x is `got`, r the truth in
// the format of the case, b `eager`, which may be not given.
PeerVerdicts judge_by_peers(const Case& c, const Truth& truth, TensorName name, const Tensor& got,
                            const Tensor& eager);

}  // namespace sinkscope
