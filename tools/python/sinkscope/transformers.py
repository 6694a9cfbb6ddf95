# SPDX-License-Identifier: Apache-2.0
"""`attn_implementation="attention_sink"` for transformers: importing this module registers it.

    import sinkscope.transformers
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="attention_sink")

What a batch's tokens belong to is taken from the first of these that is there:
  1. cu_seq_lens_q and cu_seq_lens_k (both, batch 1), as data collators for packed rows give them. Beside a padding mask with
     zeros in it that is an error: they could disagree.
  2. attention_mask [B, keys]: tokens that are not there take no part; their rows of the output are zero. position_ids split the
     others further where they start again.
  3. position_ids [B, S]: a position that does not follow the one before it starts a document.
  4. None: every row is one document.
Documents do not see each other, whichever way they were told.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

import sinkscope
from sinkscope._packing import Packing
from sinkscope._tokens import attention_of_tokens, find_packing, flat, spread

NAME = "attention_sink"


def _refuse_sequence_parallel() -> None:
    """verl's Ulysses hands every rank a slice of the sequence, and gathers it for transformers' own flash attention only."""
    ulysses = sys.modules.get("verl.utils.ulysses")
    size = ulysses.get_ulysses_sequence_parallel_world_size() if ulysses is not None else 1
    if size > 1:
        raise ValueError(f"attention_sink: ulysses_sequence_parallel_size is {size}; each rank would attend to its own slice "
                         "of the sequence alone. Supported is 1")


def _check(attention_mask: Tensor | None, dropout: float, rest: dict[str, Any]) -> None:
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(f"attention_sink: attention_mask has shape {tuple(attention_mask.shape)}; supported are None and a "
                         "padding mask [batch, keys]. Packed documents are told by position_ids or cu_seq_lens")
    if dropout > 0:
        raise ValueError(f"attention_sink: dropout is {dropout}; supported is 0 (config.attention_dropout)")
    if rest.get("softcap") is not None:
        raise ValueError(f"attention_sink: softcap is {rest['softcap']}; supported is None")
    _refuse_sequence_parallel()


def _given_offsets(cu_q: Tensor | None, cu_k: Tensor | None, attention_mask: Tensor | None, batch: int) -> Packing | None:
    if cu_q is None and cu_k is None:
        return None
    if cu_q is None or cu_k is None or batch != 1:
        raise ValueError("attention_sink: cu_seq_lens_q and cu_seq_lens_k belong together, in a batch of 1; got "
                         f"{'both' if cu_q is not None and cu_k is not None else 'one of them'} in a batch of {batch}")
    if attention_mask is not None:
        two = "attention_sink: cu_seq_lens and an attention_mask with zeros in it; supported is one of them"
        if torch.compiler.is_compiling():  # a graph cannot ask: it fails when it runs
            torch._assert_async(attention_mask.bool().all(), two)
        elif not bool(attention_mask.all()):
            raise ValueError(two)
    return Packing(cu_q.to(torch.int32), cu_k.to(torch.int32))


def attention_sink(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
                   dropout: float = 0.0, scaling: float | None = None, sliding_window: int | None = None,
                   s_aux: Tensor | None = None, position_ids: Tensor | None = None, cu_seq_lens_q: Tensor | None = None,
                   cu_seq_lens_k: Tensor | None = None, is_causal: bool | None = None, **rest: Any) -> tuple[Tensor, None]:
    """What transformers' models call. query [B, Hq, S, D], key and value [B, Hkv, keys, D]; s_aux [Hq], else module.sinks where
    the module has them. sliding_window counts the row's own key. Returns out [B, S, Hq, D] and no weights."""
    _check(attention_mask, dropout, rest)
    sinks = s_aux if s_aux is not None else getattr(module, "sinks", None)
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    arguments = {"causal": causal, "sm_scale": scaling, "bandwidth": sliding_window or 0}
    if attention_mask is not None and attention_mask.shape[1] < key.shape[2]:  # a static cache's slots that are still empty
        key, value = key[:, :, :attention_mask.shape[1]], value[:, :, :attention_mask.shape[1]]
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    batch, rows = q.shape[:2]
    packing = _given_offsets(cu_seq_lens_q, cu_seq_lens_k, attention_mask, batch)
    told = attention_mask is not None or position_ids is not None
    if packing is None and told and torch.compiler.is_compiling():
        return attention_of_tokens(q, k, v, sinks, attention_mask, position_ids, **arguments), None
    packing = packing or find_packing(attention_mask, position_ids, batch, rows, k.shape[1])
    if packing is None:
        return sinkscope.attention(q, k, v, sinks, layout="bshd", **arguments), None
    out = sinkscope.attention(flat(q, packing.rows), flat(k, packing.keys), flat(v, packing.keys), sinks, layout="bshd",
                              cu_seqlens_q=packing.cu_q, cu_seqlens_k=packing.cu_k, **arguments)
    return spread(out, packing.rows, batch * rows).view(q.shape), None


def padding_mask(*args: Any, kv_length: int, attention_mask: Tensor | None = None, **rest: Any) -> Tensor | None:
    """What transformers asks for a mask: the padding mask's columns of the keys, or None where it hides nothing, which a graph
    cannot ask."""
    if attention_mask is not None and torch.compiler.is_compiling():
        return attention_mask[:, -kv_length:]
    return flash_attention_mask(*args, kv_length=kv_length, attention_mask=attention_mask, **rest)


def register() -> None:
    """Registers the implementation and its mask; importing this module has done so."""
    AttentionInterface.register(NAME, attention_sink)
    AttentionMaskInterface.register(NAME, padding_mask)


register()
