# SPDX-License-Identifier: Apache-2.0
"""What `sinkscope.attention` takes, and the errors for what it does not take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

LAYOUTS = ("bhsd", "bshd")
_CPU_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_CUDA_DTYPES = (torch.bfloat16, torch.float16)
_SINK_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _names(values: tuple[Any, ...]) -> str:
    return ", ".join(str(v).removeprefix("torch.") for v in values)


def _is_dtensor(t: object) -> TypeGuard[DTensor]:
    if type(t) in (Tensor, torch.nn.Parameter) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(t, DTensor)


def _heads(q: Tensor, layout: str) -> int:
    return q.shape[2 if layout == "bshd" else 1]


def _autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in autocast's dtype where it is on for their device; float64 is left alone, as autocast does."""
    device = q.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device) or q.dtype == torch.float64:
        return q, k, v
    dtype = torch.get_autocast_dtype(device)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _local_sinks(sinks: Tensor | None, q: Tensor, layout: str) -> Tensor | None:
    """A DTensor of sinks as a plain tensor of q's heads.

    The whole tensor where it has as many sinks as q has heads; this rank's shard where that has (tensor parallelism,
    whose q has the rank's heads only). FSDP hands a module plain parameters already.
    """
    if not _is_dtensor(sinks):
        return sinks
    heads = _heads(q, layout)
    if sinks.shape == (heads,):
        whole: Tensor = sinks.full_tensor()
        return whole
    local: Tensor = sinks.to_local()
    if local.shape == (heads,):
        return local
    raise ValueError(f"sinks is a DTensor of shape {list(sinks.shape)}, {list(local.shape)} on this rank, beside {heads} "
                     f"heads of q; supported: [{heads}] whole or on this rank")


def _check_tensor(name: str, t: object) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} is {type(t).__name__}; supported: a torch.Tensor")
    if _is_dtensor(t):
        raise TypeError(f"{name} is a DTensor; supported: plain tensors, {name}.to_local() where heads or batch are "
                        "sharded (a DTensor of sinks is taken)")


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; supported: {_names(tuple(map(repr, LAYOUTS)))}")
    wanted = "[B, H, S, D]" if layout == "bhsd" else "[B, S, H, D]"
    for name, t in (("q", q), ("k", k), ("v", v)):
        _check_tensor(name, t)
        if t.dim() != 4:
            raise ValueError(f"{name} has shape {list(t.shape)}; supported: {wanted} with layout {layout!r}")


def _check_formats(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"q is on {q.device}; supported: cpu, cuda")
    for name, t in (("k", k), ("v", v)):
        if t.device != q.device:
            raise ValueError(f"{name} is on {t.device} and q on {q.device}; supported: one device")
        if t.dtype != q.dtype:
            raise TypeError(f"{name} is {_names((t.dtype,))} and q {_names((q.dtype,))}; supported: one dtype")
    supported = _CUDA_DTYPES if q.device.type == "cuda" else _CPU_DTYPES
    if q.dtype not in supported:
        raise TypeError(f"q is {_names((q.dtype,))} on {q.device.type}; supported: {_names(supported)}")


def _check_sizes(q: Tensor, k: Tensor, v: Tensor, layout: str) -> None:
    heads, kv_heads = _heads(q, layout), _heads(k, layout)
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k has shape {list(k.shape)} and q {list(q.shape)}; supported: the same B and D")
    if v.shape != k.shape:
        raise ValueError(f"v has shape {list(v.shape)} and k {list(k.shape)}; supported: the same")
    if min(q.shape[0], heads, kv_heads, q.shape[3]) < 1:
        raise ValueError(f"q has shape {list(q.shape)} and k {list(k.shape)}; supported: only Sq and Sk may be 0")
    if heads % kv_heads != 0:
        raise ValueError(f"q has {heads} heads and k {kv_heads}; supported: a multiple")
    if q.device.type == "cuda" and q.shape[3] not in (64, 128):
        raise ValueError(f"q has head dim {q.shape[3]} on cuda; supported: 64, 128")
    if q.shape[3] > 256 and q.dtype != torch.float64:
        raise ValueError(f"q has head dim {q.shape[3]}; supported: 1 to 256")


def _check_sinks(sinks: Tensor, q: Tensor, layout: str) -> None:
    _check_tensor("sinks", sinks)
    heads = _heads(q, layout)
    if sinks.shape != (heads,):
        raise ValueError(f"sinks has shape {list(sinks.shape)}; supported: [{heads}], one per head of q")
    if sinks.device != q.device:
        raise ValueError(f"sinks is on {sinks.device} and q on {q.device}; supported: one device")
    if sinks.dtype not in _SINK_DTYPES and q.dtype != torch.float64:
        raise TypeError(f"sinks is {_names((sinks.dtype,))}; supported: {_names(_SINK_DTYPES)}")


def _check_offsets(name: str, cu: Tensor, q: Tensor) -> None:
    _check_tensor(name, cu)
    if cu.dtype != torch.int32:
        raise TypeError(f"{name} is {_names((cu.dtype,))}; supported: int32")
    if cu.dim() != 1 or cu.shape[0] < 2:
        raise ValueError(f"{name} has shape {list(cu.shape)}; supported: [documents + 1] with at least one document")
    if cu.device != q.device:
        raise ValueError(f"{name} is on {cu.device} and q on {q.device}; supported: one device")


def _check_packing(q: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None) -> None:
    if (cu_seqlens_q is None) != (cu_seqlens_k is None):
        missing = "cu_seqlens_q" if cu_seqlens_q is None else "cu_seqlens_k"
        raise ValueError(f"{missing} is None; supported: both of cu_seqlens_q and cu_seqlens_k, or neither")
    if cu_seqlens_q is None or cu_seqlens_k is None:
        return
    _check_offsets("cu_seqlens_q", cu_seqlens_q, q)
    _check_offsets("cu_seqlens_k", cu_seqlens_k, q)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(f"cu_seqlens_k has shape {list(cu_seqlens_k.shape)} and cu_seqlens_q "
                         f"{list(cu_seqlens_q.shape)}; supported: the same")
    if q.shape[0] != 1:
        raise ValueError(f"q has B {q.shape[0]} with cu_seqlens_q; supported: B 1")


def _check(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, causal: bool, sm_scale: float | None, bandwidth: int,
           layout: str, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None) -> None:
    _check_formats(q, k, v)
    _check_sizes(q, k, v, layout)
    if sinks is not None:
        _check_sinks(sinks, q, layout)
    if sm_scale is not None and not math.isfinite(sm_scale):
        raise ValueError(f"sm_scale is {sm_scale}; supported: a finite number, or None for 1 / sqrt(D)")
    if not isinstance(bandwidth, int) or bandwidth < 0:
        raise ValueError(f"bandwidth is {bandwidth!r}; supported: 0 (no window) or a number of keys")
    if bandwidth > 0 and not causal:
        raise ValueError(f"bandwidth is {bandwidth} with causal False; supported: a window with causal True only")
    _check_packing(q, cu_seqlens_q, cu_seqlens_k)


def prepare(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, causal: bool, sm_scale: float | None, bandwidth: int,
            layout: str, cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
            ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float]:
    """q, k, v, sinks and scale as the operator takes them: plain tensors, in autocast's dtype. Raises TypeError or ValueError for
    what `sinkscope.attention` does not take."""
    _check_tensors(q, k, v, layout)
    sinks = _local_sinks(sinks, q, layout)
    q, k, v = _autocast(q, k, v)
    if sinks is not None and q.dtype == torch.float64:
        sinks = sinks.to(torch.float64)
    _check(q, k, v, sinks, causal, sm_scale, bandwidth, layout, cu_seqlens_q, cu_seqlens_k)
    return q, k, v, sinks, 1 / math.sqrt(q.shape[-1]) if sm_scale is None else sm_scale


def wants_residual(*tensors: Tensor | None) -> bool:
    """Can a backward come? The residual of out's rounding makes its Delta accurate, at a byte per element."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
