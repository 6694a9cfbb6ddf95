# SPDX-License-Identifier: Apache-2.0
"""Attention with sinks as torch writes it down, in double precision: nothing of the package, masks made element by element."""

from __future__ import annotations

import torch
from torch import Tensor


def visible(rows: int, keys: int, causal: bool, window: int) -> Tensor:
    """bool [rows, keys]: who sees whom, bottom-right aligned."""
    i = torch.arange(rows)[:, None] + keys - rows
    j = torch.arange(keys)[None, :]
    seen = torch.ones(rows, keys, dtype=torch.bool)
    if causal:
        seen &= j <= i
    if window > 0:
        seen &= j > i - window
    return seen


def visible_packed(cu_q: list[int], cu_k: list[int], causal: bool, window: int) -> Tensor:
    """bool [rows, keys] of documents packed one after the other."""
    documents = zip(zip(cu_q, cu_q[1:]), zip(cu_k, cu_k[1:]))
    return torch.block_diag(*(visible(q1 - q0, k1 - k0, causal, window) for (q0, q1), (k0, k1) in documents)).bool()


def plain_attention(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, seen: Tensor, scale: float,
                    ) -> tuple[Tensor, Tensor]:
    """out [B, Hq, Sq, D] and lse [B, Hq, Sq] of q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D], in double precision."""
    q, k, v = q.double(), k.double(), v.double()
    repeats = q.shape[1] // k.shape[1]
    scores = scale * q @ k.repeat_interleave(repeats, 1).transpose(-1, -2)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is None:
        logits = scores
    else:
        column = sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        logits = torch.cat([scores, column], -1)
    lse = torch.logsumexp(logits, -1)
    shares = torch.where(seen, torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0).unsqueeze(-1)), 0)
    return shares @ v.repeat_interleave(repeats, 1), lse
