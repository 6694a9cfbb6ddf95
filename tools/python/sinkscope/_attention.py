# SPDX-License-Identifier: Apache-2.0
"""`sinkscope.attention`: the operator as people call it."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from sinkscope import _checks, _operator  # noqa: F401  (_operator registers what is called below)


@overload
def attention(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None, *, causal: bool = True,
              sm_scale: float | None = None, bandwidth: int = 0, layout: str = "bhsd",
              cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
              return_lse: Literal[False] = False) -> Tensor: ...
@overload
def attention(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None, *, causal: bool = True,
              sm_scale: float | None = None, bandwidth: int = 0, layout: str = "bhsd",
              cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
              return_lse: Literal[True]) -> tuple[Tensor, Tensor]: ...


def attention(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None, *, causal: bool = True,
              sm_scale: float | None = None, bandwidth: int = 0, layout: str = "bhsd",
              cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
              return_lse: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Attention whose softmax has one more logit per head, the sink, without a value.

    out_i = sum_j P_ij v_j,  P_ij = exp(sm_scale q_i.k_j - lse_i),  lse_i = log(sum_j exp(sm_scale q_i.k_j) + exp(sinks_h))

    Args:
        q: [B, Hq, Sq, D], or [B, Sq, Hq, D] with layout "bshd". bf16, fp16 or fp32 on a CPU (D 1 to 256), bf16 or fp16
            on a GPU of compute capability 9.0 (D 64 or 128); float64 on a CPU runs the double-precision truth, slowly.
        k, v: [B, Hkv, Sk, D] (or [B, Sk, Hkv, D]) of q's dtype; Hkv divides Hq, and they are not repeated.
        sinks: [Hq], natural-log units, not scaled by sm_scale; fp32, bf16 or fp16 (float64 beside float64). None is
            plain attention, and so is -inf, head by head.
        causal: row i sees key j where j <= i + Sk - Sq (bottom-right aligned, per document).
        sm_scale: multiplies q.k; None: 1 / sqrt(D).
        bandwidth: 0: no window; W: only the last W keys that causal allows, the row's own included.
        layout: "bhsd" or "bshd", of q, k, v and out. Any strides are read without a copy where D is contiguous (on a
            GPU also addresses and strides of multiples of 16 bytes); out is contiguous in the layout.
        cu_seqlens_q, cu_seqlens_k: int32 [documents + 1] on q's device, rising from 0 to Sq and to Sk: documents packed
            into one row (B 1), which do not see each other. On a GPU what they say is not checked.
        return_lse: also return lse.

    Returns:
        out, shaped as q; with return_lse (out, lse), lse [B, Hq, Sq] in fp32 (of float64 inputs float64), natural log,
        the sink included, -inf in a row that sees nothing. Both can be differentiated, in q, k, v and sinks.

    Under autocast q, k and v are taken to its dtype; sinks stay as they are.

    Raises:
        TypeError, ValueError: with the argument's name, its value and what is supported.
    """
    q, k, v, sinks, scale = _checks.prepare(q, k, v, sinks, causal, sm_scale, bandwidth, layout, cu_seqlens_q, cu_seqlens_k)
    out, lse, _ = torch.ops.sinkscope.attention_forward(q, k, v, sinks, cu_seqlens_q, cu_seqlens_k, causal, scale, bandwidth,
                                                        layout == "bshd", _checks.wants_residual(q, k, v, sinks))
    return (out, lse) if return_lse else out
