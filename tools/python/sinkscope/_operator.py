# SPDX-License-Identifier: Apache-2.0
"""Shapes and gradients of torch.ops.sinkscope, registered in Python because torch's stable ABI has neither."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinkscope import _native

assert _native.PATH  # the operators have to be there before anything is registered for them

_FORWARD = "sinkscope::attention_forward"
_BACKWARD = "sinkscope::attention_backward"


def wide(q: Tensor) -> torch.dtype:
    """The format of lse and dsinks."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def has_residual(q: Tensor) -> bool:
    return q.dtype in (torch.bfloat16, torch.float16)


def empty_gradients(q: Tensor, k: Tensor, v: Tensor, heads: int,
                    needed: tuple[bool, bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv and dsinks as a backward returns them, unwritten; [0] where not needed."""
    dq, dk, dv = (q.new_empty(t.shape if wanted else (0,)) for t, wanted in zip((q, k, v), needed))
    return dq, dk, dv, q.new_empty((heads if needed[3] else 0,), dtype=wide(q))


@torch.library.register_fake(_FORWARD)
def _forward_fake(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, cu_seqlens_q: Tensor | None,
                  cu_seqlens_k: Tensor | None, causal: bool, sm_scale: float, bandwidth: int, bshd: bool,
                  with_residual: bool) -> tuple[Tensor, Tensor, Tensor]:
    b, h, s, d = (q.transpose(1, 2) if bshd else q).shape
    residual_shape = (b, h, s, d) if with_residual and has_residual(q) else (0,)
    return q.new_empty(q.shape), q.new_empty((b, h, s), dtype=wide(q)), q.new_empty(residual_shape, dtype=torch.int8)


@torch.library.register_fake(_BACKWARD)
def _backward_fake(dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None,
                   out: Tensor, lse: Tensor, residual: Tensor | None, cu_seqlens_q: Tensor | None,
                   cu_seqlens_k: Tensor | None, causal: bool, sm_scale: float, bandwidth: int, bshd: bool,
                   need_dq: bool, need_dk: bool, need_dv: bool, need_dsinks: bool,
                   ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_gradients(q, k, v, q.shape[2 if bshd else 1], (need_dq, need_dk, need_dv, need_dsinks))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, sinks, cu_seqlens_q, cu_seqlens_k, causal, sm_scale, bandwidth, bshd, _ = inputs
    out, lse, residual = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(residual)
    ctx.save_for_backward(q, k, v, sinks, out, lse, residual, cu_seqlens_q, cu_seqlens_k)
    ctx.function = (causal, sm_scale, bandwidth, bshd)


def _gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """d/dq, d/dk, d/dv, d/dsinks; what nobody needs is not computed."""
    needed = ctx.needs_input_grad[:4]
    if (dout is None and dlse is None) or not any(needed):
        return (None,) * 11
    q, k, v, sinks, out, lse, residual, cu_seqlens_q, cu_seqlens_k = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    dq, dk, dv, dsinks = torch.ops.sinkscope.attention_backward(
        dout, dlse, q, k, v, sinks, out, lse, residual, cu_seqlens_q, cu_seqlens_k, *ctx.function, *needed)
    gradients = (dq, dk, dv, dsinks.to(sinks.dtype) if needed[3] else None)
    return tuple(g if wanted else None for g, wanted in zip(gradients, needed)) + (None,) * 7


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pass


def _refuse_second_order(ctx: Any, *gradients: Tensor | None) -> None:
    raise NotImplementedError("sinkscope.attention has no second derivative; wanted a first-order backward "
                              "(create_graph=False)")


torch.library.register_autograd(_FORWARD, _gradients, setup_context=_save)
torch.library.register_autograd(_BACKWARD, _refuse_second_order, setup_context=_save_nothing)
