# SPDX-License-Identifier: Apache-2.0
"""What one attention call is meant to compute: causality, window, documents and padding, read from its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


class NotRepresentable(ValueError):
    """A call that the capture format has no words for; the text says what was seen and what is supported."""


@dataclass
class Meaning:
    """The function that a call stands for. Rows of padding are behind each entry's own after `shift`."""

    causal: bool
    window: int  # keys including the row's own, 0: none
    scale: float
    offsets: list[int] | None  # documents of one packed row: 0, ..., rows
    lengths: list[int] | None  # rows of each batch entry before its padding
    shift: list[int] | None  # padding before each entry's rows, to be rolled behind them
    mask_note: str  # how the mask that the call was given differs from this, or ''


def _documents(batch: int, rows: int, keys: int, keywords: dict[str, Any]) -> list[int] | None:
    """Offsets of packed documents: cu_seq_lens_q where given, else where position_ids start again."""
    if batch != 1 or rows != keys:
        return None
    given = keywords.get("cu_seq_lens_q")
    if given is not None:
        offsets = [int(offset) for offset in given]
        if offsets[0] != 0 or offsets[-1] != rows:
            raise NotRepresentable(f"cu_seq_lens_q goes from {offsets[0]} to {offsets[-1]}, wanted 0 to {rows} rows")
        return offsets if len(offsets) > 2 else None
    positions = keywords.get("position_ids")
    if positions is None or positions.dim() != 2 or positions.shape != (1, rows):
        return None
    starts = (positions[0].diff() != 1).nonzero().flatten() + 1
    return [0, *starts.tolist(), rows] if len(starts) else None


def _padding(visible: torch.Tensor) -> tuple[list[int], list[int]] | None:
    """Rows and leading padding of each entry of `visible` [B, S]; None where nothing is padded."""
    if bool(visible.all()):
        return None
    lengths = visible.sum(dim=1)
    first = visible.int().argmax(dim=1)
    places = torch.arange(visible.shape[1], device=visible.device)
    run = (places >= first[:, None]) & (places < (first + lengths)[:, None])
    if not torch.equal(run, visible):
        raise NotRepresentable("the mask hides rows in the middle of a batch entry, supported is padding before or behind it")
    return lengths.tolist(), first.tolist()


def _allowed(mask: torch.Tensor) -> torch.Tensor:
    """[B, Sq, Sk] of what a 4-D mask (bool, or added to the scores) lets each row see."""
    if mask.shape[1] != 1 and not bool((mask == mask[:, :1]).all()):
        raise NotRepresentable("the mask differs between heads, supported is one mask for all")
    first = mask[:, 0]
    return first if first.dtype == torch.bool else first > torch.finfo(first.dtype).min / 2


def _expected(rows: int, keys: int, causal: bool, window: int, offsets: list[int] | None,
              device: torch.device) -> torch.Tensor:
    """[Sq, Sk] of what a row may see; rows are aligned with the last keys."""
    at = torch.arange(rows, device=device)[:, None] + keys - rows
    key = torch.arange(keys, device=device)[None, :]
    allowed = key <= at if causal else torch.ones(rows, keys, dtype=torch.bool, device=device)
    if window:
        allowed = allowed & (key > at - window)
    if offsets is not None:
        document = torch.bucketize(key[0], torch.tensor(offsets[1:-1], device=device), right=True)
        allowed = allowed & (document[:, None] == document[None, :])
    return allowed


def _mask_note(allowed: torch.Tensor, visible: torch.Tensor | None, meaning: Meaning) -> str:
    """Compares what a 4-D mask allows with what is meant; a mask of another kind is refused."""
    batch, rows, keys = allowed.shape
    real = torch.ones(batch, rows, dtype=torch.bool, device=allowed.device) if visible is None else visible

    def agrees(offsets: list[int] | None, window: int) -> bool:
        want = _expected(rows, keys, meaning.causal, window, offsets, allowed.device).expand_as(allowed)
        if visible is not None:
            want = want & visible[:, None, :]
        return bool(((want == allowed) | ~real[:, :, None]).all())

    if agrees(meaning.offsets, meaning.window):
        return ""
    if meaning.offsets is not None and agrees(None, meaning.window):
        return "the mask lets documents see each other"
    if meaning.window and agrees(meaning.offsets, 0):
        return "the mask has no window"
    raise NotRepresentable("the 4-D mask is neither causal nor full, with a window, documents or padding: supported are these")


def read_meaning(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None,
                 keywords: dict[str, Any]) -> Meaning:
    """What a call of transformers' attention interface is meant to compute.

    `query` is [B, Hq, Sq, D], `key` [B, Hkv, Sk, D], `mask` what the interface got: None, [B, S] or 4-D. Documents come
    from cu_seq_lens_q or from restarting position_ids whatever the mask says, since losing them on the way is a mistake
    of the implementation. Raises NotRepresentable with the value seen and what is supported.
    """
    batch, _, rows, size = query.shape
    keys = key.shape[2]
    if float(keywords.get("dropout") or 0.0) != 0.0:
        raise NotRepresentable(f"dropout={keywords['dropout']}, supported is 0: random outputs have no truth")
    if keywords.get("softcap") is not None:
        raise NotRepresentable(f"softcap={keywords['softcap']}, supported is none")
    causal = keywords.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    scale = keywords.get("scaling")
    window = int(keywords.get("sliding_window") or 0)
    meaning = Meaning(causal=causal, window=window if window < keys else 0,
                      scale=float(size**-0.5 if scale is None else scale),
                      offsets=_documents(batch, rows, keys, keywords), lengths=None, shift=None, mask_note="")
    if mask is None:
        return meaning
    if mask.dim() == 2:
        allowed, visible = None, mask[:, -keys:].bool()
    elif mask.dim() == 4:
        allowed = _allowed(mask)[..., :keys].expand(batch, rows, keys)
        visible = allowed.diagonal(dim1=1, dim2=2) if causal and rows == keys else None
    else:
        raise NotRepresentable(f"a mask of {mask.dim()} dimensions, supported are none, 2 and 4")
    padding = None if visible is None else _padding(visible)
    if padding is not None:
        if not causal or rows != keys or keywords.get("cu_seq_lens_q") is not None:
            raise NotRepresentable(f"padding with causal={causal}, {rows} rows and {keys} keys or with cu_seq_lens_q, "
                                   "supported is a causal call with as many rows as keys and one document")
        meaning.offsets = None  # position_ids count through padding as they like; the mask wins over them
        meaning.lengths, meaning.shift = padding
    if allowed is not None:
        meaning.mask_note = _mask_note(allowed, visible if padding else None, meaning)
    return meaning
