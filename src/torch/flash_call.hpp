// SPDX-License-Identifier: Apache-2.0
// ATen's flash attention ops in the case's terms: aten::_scaled_dot_product_flash_attention_for_cpu, a piece of
// a case at a time, and aten::_flash_attention_forward (flash attention 2), which takes the whole case.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "src/torch/document.hpp"

namespace sinkscope::torch_paths {

// Where nothing else is said, tensors are [b, h, rows, d] and the LSE is [b, hq, rows] fp32, with the rows and
// keys of this call.
class FlashCall {
 public:
  struct Forward {
    at::Tensor out, lse;           // without a sink; rows without keys have out 0 and LSE -inf
    at::Tensor rng_state, unused;  // what the GPU's op wants back
  };
  struct Backward {
    at::Tensor dq, dk, dv;
  };

  FlashCall(const TorchCase& t, const Piece& piece);

  Forward forward() const;
  // `out` and `lse` are the forward's or, with a sink put in, others; all rows' gradients are computed.
  Backward backward(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                    const Forward& forward) const;

  at::Tensor rows(const at::Tensor& tensor) const { return tensor.narrow(2, piece_.first_row, piece_.rows); }
  at::Tensor keys(const at::Tensor& tensor) const { return tensor.narrow(2, piece_.first_key, piece_.keys); }
  const at::Tensor& dout() const { return dout_; }
  const at::Tensor& empty_rows() const { return empty_; }  // [rows] booleans; undefined where there are none

 private:
  Forward forward_on_cuda() const;
  Backward backward_on_cuda(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                            const Forward& forward) const;
  at::Tensor to_op(const at::Tensor& tensor) const;
  at::Tensor from_op(const at::Tensor& tensor) const;

  std::optional<at::Tensor> mask() const;  // on the CPU: what the op's own causal mask does not say

  TorchCase t_;
  Piece piece_;
  double scale_;
  bool causal_;
  at::Tensor q_, k_, v_, dout_;
  at::Tensor empty_;

  at::Tensor cu_q_, cu_k_;  // on the GPU: where documents begin, int32; undefined without documents
  std::int64_t most_rows_ = 0, most_keys_ = 0;  // of a document
  std::int64_t window_left_ = -1;               // keys to the left of the row's own; -1: all
};

// The calls that compute a case: on the GPU at most one, none where no row sees a key.
std::vector<FlashCall> flash_calls(const TorchCase& t);

// Why a device's op cannot compute a case, or nothing.
std::optional<std::string> flash_unsupported(const Case& c, at::DeviceType device);

// While one lives, the GPU's backward adds dq up in a fixed order, and memory that an op leaves unwritten is
// NaN.
class DeterministicFlash {
 public:
  DeterministicFlash();
  ~DeterministicFlash();
  DeterministicFlash(const DeterministicFlash&) = delete;
  DeterministicFlash& operator=(const DeterministicFlash&) = delete;

 private:
  bool before_, warn_only_before_;
};

}  // namespace sinkscope::torch_paths
