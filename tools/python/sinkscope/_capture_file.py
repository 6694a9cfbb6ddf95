# SPDX-License-Identifier: Apache-2.0
"""One recorded attention call, cut to its limits, and its file in the capture format (src/capture/README.md)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sinkscope._call import Meaning, NotRepresentable

_FORMATS = {torch.bfloat16, torch.float16, torch.float32}


@dataclass(frozen=True)
class CaptureLimits:
    rows: int
    batch: int
    heads: int


def _host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory that autograd knows nothing of."""
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().to("cpu", copy=True)


@dataclass
class Recorded:
    """Tensors of one call in host memory: [b, h, s, d] of the kept entries, heads and rows; sinks and dsinks [h]."""

    layer: int
    step: int
    meaning: Meaning
    limits: CaptureLimits
    implementation: str
    model: str
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # q k v sinks
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)  # out dq dk dv dsinks
    dout: torch.Tensor | None = None
    absent: dict[str, str] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    kept: tuple[int, int, int, int] = (0, 0, 0, 0)  # entries, query heads, key heads, rows
    keys: int = 0
    has_padded_dout: bool = False

    def leave_out(self, name: str, why: str) -> None:
        self.absent.setdefault(name, why)
        self.outputs.pop(name, None)

    def release(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def take_inputs(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        if query.dim() != 4 or query.shape[-1] != value.shape[-1] or key.shape != value.shape:
            raise NotRepresentable(f"q {list(query.shape)}, k {list(key.shape)} and v {list(value.shape)}, supported are "
                                   "[B, Hq, Sq, D] and twice [B, Hkv, Sk, D]")
        batch, heads, rows, _ = query.shape
        group = heads // key.shape[1]
        groups = min(key.shape[1], max(1, self.limits.heads // group))
        self._keep(batch, heads, group, groups, rows, key.shape[2])
        self.tensors.update(q=self._cut(query, of_keys=False), k=self._cut(key, of_keys=True),
                            v=self._cut(value, of_keys=True))

    def _keep(self, batch: int, heads: int, group: int, groups: int, rows: int, keys: int) -> None:
        kept_batch, kept_rows, meaning = min(batch, self.limits.batch), min(rows, self.limits.rows), self.meaning
        self.keys = keys
        if kept_batch < batch:
            self.leave_out("dsinks", f"{batch - kept_batch} of {batch} batch entries are cut")
        if kept_rows < rows:
            kept_rows = self._cut_rows(rows, keys, kept_rows)
        self.notes["kept"] = (f"batch {kept_batch} of {batch}, query heads {group * groups} of {heads}, rows {kept_rows} of {rows}")
        self.kept = (kept_batch, group * groups, groups, kept_rows)
        if meaning.lengths is not None:
            meaning.lengths = [min(length, kept_rows) for length in meaning.lengths[:kept_batch]]

    def _cut_rows(self, rows: int, keys: int, limit: int) -> int:
        meaning = self.meaning
        if rows != keys or not meaning.causal:
            raise NotRepresentable(f"{rows} rows over {keys} keys with causal={meaning.causal} and max_rows={limit}: "
                                   "supported is cutting causal calls with as many rows as keys")
        self.leave_out("dsinks", f"rows behind the first {limit} are cut")
        whole = [] if meaning.offsets is None else [offset for offset in meaning.offsets if offset <= limit]
        if len(whole) > 1:
            meaning.offsets = whole if len(whole) > 2 else None
            self.keys = whole[-1]
            return whole[-1]
        meaning.offsets, self.keys = None, limit
        if meaning.lengths is None or max(meaning.lengths) > limit:
            for name in ("dk", "dv"):
                self.leave_out(name, f"rows behind the first {limit} are cut")
        return limit

    def _cut(self, tensor: torch.Tensor, of_keys: bool) -> torch.Tensor:
        """[b, h, s, d] of a [B, H, S, D] tensor: kept entries and heads, padding rolled behind, kept rows."""
        batch, heads, groups, rows = self.kept
        part = tensor.detach()[:batch, :groups if of_keys else heads]
        if self.meaning.shift is not None and any(self.meaning.shift):
            part = torch.stack([entry.roll(-shift, dims=1) for entry, shift in zip(part, self.meaning.shift)])
        return _host(part[:, :, :self.keys if of_keys else rows]).contiguous()

    def take_sinks(self, sinks: torch.Tensor) -> None:
        if sinks.dim() != 1:
            raise NotRepresentable(f"sinks of shape {list(sinks.shape)}, supported is [Hq]")
        self.tensors["sinks"] = _host(sinks)[:self.kept[1]].clone()

    def take_out(self, out: torch.Tensor) -> None:
        self.outputs["out"] = self._cut(out.transpose(1, 2), of_keys=False)

    def take_dout(self, gradient: torch.Tensor) -> None:
        self.dout = self._cut(gradient.transpose(1, 2), of_keys=False)
        for entry, length in enumerate(self.meaning.lengths or []):
            self.has_padded_dout |= bool(self.dout[entry, :, length:].any())

    def take_gradient(self, name: str, gradient: torch.Tensor) -> None:
        if name in self.absent:
            return
        if name == "dsinks":
            self.outputs[name] = _host(gradient)[:self.kept[1]].clone()
        else:
            self.outputs[name] = self._cut(gradient, of_keys=name != "dq")


def _inputs(record: Recorded) -> dict[str, torch.Tensor]:
    """q, k, v, dout in the format that the implementation computed in, which is that of its output."""
    assert record.dout is not None
    computed = record.outputs["out"].dtype
    if computed not in _FORMATS:
        raise NotRepresentable(f"an output in {computed}, supported are bfloat16, float16 and float32")
    tensors = {**record.tensors, "dout": record.dout}
    for name in ("q", "k", "v", "dout"):
        if tensors[name].dtype != computed:
            record.notes[f"cast_{name}"] = f"{tensors[name].dtype} to {computed}, as the output is"
            tensors[name] = tensors[name].to(computed)
    return tensors


def _metadata(record: Recorded) -> dict[str, str]:
    meaning = record.meaning
    texts = {"format": "sink-attention-capture", "version": "1", "layout": "bhsd", "causal": str(int(meaning.causal)),
             "window": str(meaning.window), "scale": repr(meaning.scale), "model": record.model,
             "layer": str(record.layer), "step": str(record.step), "implementation": record.implementation,
             "source": f"step {record.step} of training with {record.implementation}, torch {torch.__version__}",
             "limits": f"max_rows {record.limits.rows}, max_batch {record.limits.batch}, max_heads {record.limits.heads}"}
    texts.update(record.notes)
    if meaning.mask_note:
        texts["mask"] = meaning.mask_note
    for name, why in record.absent.items():
        texts[f"absent_{name}"] = why
    return texts


def write_capture(record: Recorded, folder: Path, overwrite: bool) -> Path:
    """Writes step<S>_layer<L>.safetensors, which appears whole or not at all. Raises NotRepresentable, OSError."""
    from safetensors.torch import save_file

    if record.has_padded_dout:
        for name in ("dk", "dv", "dsinks"):
            record.leave_out(name, "rows of padding have a gradient, which counts as zero in a capture")
    if "sinks" in record.tensors and len(record.tensors["sinks"]) != record.kept[1]:
        raise NotRepresentable(f"{len(record.tensors['sinks'])} sinks for {record.kept[1]} query heads")
    tensors = _inputs(record)
    name = re.sub(r"[^A-Za-z0-9_+-]", "_", record.implementation)
    tensors.update({f"{name}.{output}": tensor for output, tensor in record.outputs.items()})
    if record.meaning.offsets is not None:
        tensors["cu_seqlens"] = torch.tensor(record.meaning.offsets, dtype=torch.int32)
    if record.meaning.lengths is not None:
        tensors["seqlens"] = torch.tensor(record.meaning.lengths, dtype=torch.int32)
    path = folder / f"step{record.step}_layer{record.layer}.safetensors"
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; set overwrite=True to replace it")
    pending = folder / f".{path.name}.{os.getpid()}"
    try:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, pending, metadata=_metadata(record))
        os.replace(pending, path)
    finally:
        pending.unlink(missing_ok=True)
    return path
