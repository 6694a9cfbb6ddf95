# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a batch are documents of their own: from offsets, a padding mask, or positions that start again."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Documents packed into one row: offsets int32 [documents + 1], and which tokens of [B * S] they are (None: all)."""

    cu_q: Tensor
    cu_k: Tensor
    rows: Tensor | None = None
    keys: Tensor | None = None


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _starts(position_ids: Tensor) -> Tensor:
    """bool [B, S]: does a document start here? A row's first token does, and a position that does not follow the last."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return starts


def one_document_a_row(batch: int, rows: int, keys: int, device: torch.device) -> Packing:
    """Every row of a batch as a document."""
    cu_q, cu_k = (torch.arange(batch + 1, dtype=torch.int32, device=device) * length for length in (rows, keys))
    return Packing(cu_q, cu_k)


def from_positions(position_ids: Tensor) -> Packing | None:
    """position_ids [B, S]; None where every row is one document."""
    starts = _starts(position_ids)
    if not starts[:, 1:].any():
        return None
    first = starts.flatten().nonzero().flatten()
    end = first.new_tensor([position_ids.numel()])
    cu = torch.cat([first, end]).to(torch.int32)
    return Packing(cu, cu)


def from_mask(mask: Tensor, rows: int, position_ids: Tensor | None) -> Packing:
    """mask [B, keys], nonzero where a token is there; the queries are its last `rows` columns. Positions that start again
    among the tokens that are there split a row further; that wants as many rows as keys."""
    there = mask.bool()
    queries = there[:, -rows:]
    keys_at, rows_at = there.flatten().nonzero().flatten(), queries.flatten().nonzero().flatten()
    if position_ids is not None and rows == mask.shape[1]:
        positions = position_ids.expand(mask.shape).flatten()[keys_at]
        row = keys_at // mask.shape[1]
        starts = torch.ones_like(positions, dtype=torch.bool)
        starts[1:] = (positions[1:] != positions[:-1] + 1) | (row[1:] != row[:-1])
        first = starts.nonzero().flatten()
        cu = torch.cat([first, first.new_tensor([positions.numel()])]).to(torch.int32)
        return Packing(cu, cu, rows_at, keys_at)
    return Packing(_offsets(queries.sum(1)), _offsets(there.sum(1)), rows_at, keys_at)


class LastOf:
    """What was worked out of the last tensors that were asked about: the layers of a step all ask the same."""

    def __init__(self) -> None:
        self._asked: tuple[tuple[weakref.ref[Tensor] | None, int], ...] = ()
        self._rest: tuple[object, ...] = ()
        self._answer: Packing | None = None

    def get(self, tensors: tuple[Tensor | None, ...], rest: tuple[object, ...]) -> tuple[bool, Packing | None]:
        """(is it known, the answer)."""
        known = len(tensors) == len(self._asked) and rest == self._rest and all(
            (t is None and ref is None) or (t is not None and ref is not None and ref() is t and t._version == version)
            for t, (ref, version) in zip(tensors, self._asked))
        return known, self._answer if known else None

    def set(self, tensors: tuple[Tensor | None, ...], rest: tuple[object, ...], answer: Packing | None) -> None:
        self._asked = tuple((None, 0) if t is None else (weakref.ref(t), t._version) for t in tensors)
        self._rest = rest
        self._answer = answer
