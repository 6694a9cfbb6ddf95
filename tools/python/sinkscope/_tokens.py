# SPDX-License-Identifier: Apache-2.0
"""Attention whose documents are told by a padding mask or by positions: as one operator, for torch.compile.

Which tokens belong together is in the values of these tensors, and how many there are is the shape of what follows. A compiled
graph has neither, so the operator looks inside itself, and its tensors have a place for every token, there or not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinkscope import _checks, _operator
from sinkscope._packing import LastOf, Packing, from_mask, from_positions, one_document_a_row

_last = LastOf()


def find_packing(attention_mask: Tensor | None, position_ids: Tensor | None, batch: int, rows: int, keys: int) -> Packing | None:
    """From attention_mask [B, keys], else position_ids [B or 1, rows]; None where every row is one document. Looks at values, once
    for all layers of a step."""
    known, packing = _last.get((attention_mask, position_ids), (batch, rows, keys))
    if known:
        return packing
    if attention_mask is not None:
        packing = from_mask(attention_mask, rows, position_ids)
    elif position_ids is not None and position_ids.dim() == 2 and rows > 1:
        packing = from_positions(position_ids.expand(batch, -1))
        if packing is not None and rows != keys:
            raise ValueError(f"attention_sink: position_ids start again in {rows} rows beside {keys} keys; packed documents "
                             "are supported without a cache of earlier keys")
    else:
        packing = None
    _last.set((attention_mask, position_ids), (batch, rows, keys), packing)
    return packing


def flat(t: Tensor, at: Tensor | None) -> Tensor:
    """[B, S, ...] to [1, tokens, ...]: all tokens, or those at `at`."""
    t = t.reshape(1, -1, *t.shape[2:])
    return t if at is None else t.index_select(1, at)


def spread(t: Tensor, at: Tensor | None, tokens: int) -> Tensor:
    """[1, tokens there, ...] to [1, tokens, ...]: `flat` undone, with zeros for the tokens that are not at `at`."""
    return t if at is None else t.new_zeros(1, tokens, *t.shape[2:]).index_copy_(1, at, t)


def _packing_of(q: Tensor, k: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Packing:
    batch, rows, keys = q.shape[0], q.shape[1], k.shape[1]
    found = find_packing(attention_mask, position_ids, batch, rows, keys)
    return one_document_a_row(batch, rows, keys, q.device) if found is None else found


def _swap(t: Tensor) -> Tensor:
    """[1, H, tokens, ...] to [1, tokens, H, ...] and back."""
    return t.transpose(1, 2)


@torch.library.custom_op("sinkscope::attention_of_tokens", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _forward(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, attention_mask: Tensor | None, position_ids: Tensor | None,
             causal: bool, sm_scale: float, bandwidth: int, with_residual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, S, Hq, D], k and v [B, keys, Hkv, D] to out [B, S, Hq, D], lse [1, Hq, B S] and residual [1, Hq, B S, D] or [0]."""
    packing = _packing_of(q, k, attention_mask, position_ids)
    out, lse, residual = torch.ops.sinkscope.attention_forward(
        flat(q, packing.rows), flat(k, packing.keys), flat(v, packing.keys), sinks, packing.cu_q, packing.cu_k, causal, sm_scale,
        bandwidth, True, with_residual)
    tokens = q.shape[0] * q.shape[1]
    out = spread(out, packing.rows, tokens).view(q.shape)
    if packing.rows is not None:
        lse = _swap(spread(_swap(lse), packing.rows, tokens)).contiguous()
        if residual.dim() == 4:
            residual = _swap(spread(_swap(residual), packing.rows, tokens)).contiguous()
    return out, lse, residual


@_forward.register_fake
def _forward_fake(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, attention_mask: Tensor | None,
                  position_ids: Tensor | None, causal: bool, sm_scale: float, bandwidth: int,
                  with_residual: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, heads, d = q.shape
    residual_shape = (1, heads, batch * rows, d) if with_residual and _operator.has_residual(q) else (0,)
    return (q.new_empty(q.shape), q.new_empty((1, heads, batch * rows), dtype=_operator.wide(q)),
            q.new_empty(residual_shape, dtype=torch.int8))


@torch.library.custom_op("sinkscope::attention_of_tokens_backward", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, out: Tensor, lse: Tensor, residual: Tensor,
              attention_mask: Tensor | None, position_ids: Tensor | None, causal: bool, sm_scale: float, bandwidth: int,
              need_dq: bool, need_dk: bool, need_dv: bool, need_dsinks: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    packing = _packing_of(q, k, attention_mask, position_ids)
    if packing.rows is not None:
        lse = lse.index_select(2, packing.rows)
        residual = residual.index_select(2, packing.rows) if residual.dim() == 4 else residual
    dq, dk, dv, dsinks = torch.ops.sinkscope.attention_backward(
        flat(dout, packing.rows), None, flat(q, packing.rows), flat(k, packing.keys), flat(v, packing.keys), sinks,
        flat(out, packing.rows), lse, residual, packing.cu_q, packing.cu_k, causal, sm_scale, bandwidth, True,
        need_dq, need_dk, need_dv, need_dsinks)

    def whole(gradient: Tensor, like: Tensor, at: Tensor | None, needed: bool) -> Tensor:
        return spread(gradient, at, like.shape[0] * like.shape[1]).view(like.shape) if needed else gradient

    return (whole(dq, q, packing.rows, need_dq), whole(dk, k, packing.keys, need_dk), whole(dv, v, packing.keys, need_dv),
            dsinks)


@_backward.register_fake
def _backward_fake(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, out: Tensor, lse: Tensor,
                   residual: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, causal: bool, sm_scale: float,
                   bandwidth: int, need_dq: bool, need_dk: bool, need_dv: bool, need_dsinks: bool,
                   ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _operator.empty_gradients(q, k, v, q.shape[2], (need_dq, need_dk, need_dv, need_dsinks))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, sinks, attention_mask, position_ids, causal, sm_scale, bandwidth, _ = inputs
    out, lse, residual = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(lse, residual)
    ctx.save_for_backward(q, k, v, sinks, out, lse, residual, attention_mask, position_ids)
    ctx.function = (causal, sm_scale, bandwidth)


def _gradients(ctx: Any, dout: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:4]
    if dout is None or not any(needed):
        return (None,) * 10
    q, k, v, sinks, out, lse, residual, attention_mask, position_ids = ctx.saved_tensors
    *gradients, dsinks = _backward(dout, q, k, v, sinks, out, lse, residual, attention_mask, position_ids, *ctx.function, *needed)
    gradients.append(dsinks.to(sinks.dtype) if needed[3] else None)
    return tuple(g if wanted else None for g, wanted in zip(gradients, needed)) + (None,) * 6


_forward.register_autograd(_gradients, setup_context=_save)


def attention_of_tokens(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, attention_mask: Tensor | None,
                        position_ids: Tensor | None, *, causal: bool, sm_scale: float | None, bandwidth: int) -> Tensor:
    """`sinkscope.attention` in layout "bshd" with the documents that `find_packing` finds. Rows of tokens that are not there are
    zero."""
    q, k, v, sinks, scale = _checks.prepare(q, k, v, sinks, causal, sm_scale, bandwidth, "bshd")
    out: Tensor = _forward(q, k, v, sinks, attention_mask, position_ids, causal, scale, bandwidth,
                           _checks.wants_residual(q, k, v, sinks))[0]
    return out
