# SPDX-License-Identifier: Apache-2.0
"""Cases of sinkscope.attention, their inputs, and what plain attention in double precision makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from plain_attention import plain_attention, visible, visible_packed
from torch import Tensor

import sinkscope

# |got - ref| / |ref| of a tensor: some units of rounding of the format.
LIMIT = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2, torch.float64: 1e-12}


@dataclass
class Case:
    dtype: torch.dtype = torch.float32
    b: int = 2
    hq: int = 4
    hkv: int = 2
    sq: int = 70
    sk: int = 70
    d: int = 64
    causal: bool = True
    window: int = 0
    sinks: bool = True
    sink_dtype: torch.dtype = torch.float32
    layout: str = "bhsd"
    cu_q: tuple[int, ...] = ()
    cu_k: tuple[int, ...] = ()
    device: str = "cpu"

    def seen(self) -> Tensor:
        if self.cu_q:
            return visible_packed(list(self.cu_q), list(self.cu_k), self.causal, self.window)
        return visible(self.sq, self.sk, self.causal, self.window)

    def inputs(self, seed: int = 0) -> list[Tensor]:
        """q, k, v, sinks, dout in the case's layout, dlse [B, Hq, Sq]; leaves that want gradients."""
        g = torch.Generator().manual_seed(seed)

        def draw(heads: int, rows: int) -> Tensor:
            t = torch.randn(self.b, heads, rows, self.d, generator=g, dtype=torch.float64).to(self.device, self.dtype)
            return t.transpose(1, 2).contiguous() if self.layout == "bshd" else t

        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        q, k, v, dout = (draw(h, s) for h, s in ((self.hq, self.sq), (self.hkv, self.sk), (self.hkv, self.sk),
                                                 (self.hq, self.sq)))
        sinks = torch.randn(self.hq, generator=g, dtype=torch.float64).to(self.device, self.sink_dtype)
        dlse = torch.randn(self.b, self.hq, self.sq, generator=g, dtype=torch.float64).to(self.device, wide)
        for t in (q, k, v, sinks):
            t.requires_grad_()
        return [q, k, v, sinks, dout, dlse]

    def offsets(self) -> list[Tensor | None]:
        return [torch.tensor(cu, dtype=torch.int32, device=self.device) if cu else None for cu in (self.cu_q, self.cu_k)]

    def call(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
        cu_q, cu_k = self.offsets()
        return sinkscope.attention(q, k, v, sinks if self.sinks else None, causal=self.causal, bandwidth=self.window,
                                   layout=self.layout, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, return_lse=True)


def reference_of(case: Case, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Outputs and gradients of plain attention in double, on the very numbers that the case's inputs hold."""
    q, k, v, sinks = (t.detach().double().cpu().requires_grad_() for t in inputs[:4])
    dout, dlse = inputs[4].double().cpu(), inputs[5].double().cpu()
    swap = (lambda t: t.transpose(1, 2)) if case.layout == "bshd" else (lambda t: t)
    out, lse = plain_attention(swap(q), swap(k), swap(v), sinks if case.sinks else None, case.seen(),
                               1 / math.sqrt(case.d))
    finite = lse.masked_fill(lse == -torch.inf, 0)
    ((swap(out) * dout).sum() + (finite * dlse).sum()).backward()
    found = {"out": swap(out), "lse": lse, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    return {**found, "dsinks": sinks.grad} if case.sinks else found


def results_of(case: Case, inputs: list[Tensor]) -> dict[str, Tensor]:
    q, k, v, sinks, dout, dlse = inputs
    out, lse = case.call(q, k, v, sinks)
    torch.autograd.backward([out, lse], [dout, dlse])
    found = {"out": out, "lse": lse, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    return {**found, "dsinks": sinks.grad} if case.sinks else found


def relative(got: Tensor, ref: Tensor) -> float:
    got, ref = got.detach().double().cpu(), ref.detach().double().cpu()
    assert got.shape == ref.shape
    same = got == ref  # infinities too
    return (torch.where(same, 0, got - ref).norm() / ref[ref.isfinite()].norm().clamp_min(1e-300)).item()


def changed(case: Case, **changes: object) -> Case:
    return Case(**{**case.__dict__, **changes})


def assert_right(case: Case) -> None:
    inputs = case.inputs()
    got, ref = results_of(case, inputs), reference_of(case, inputs)
    for name, tensor in ref.items():
        limit = 2e-6 if name == "lse" and case.dtype != torch.float64 else LIMIT[case.dtype]
        if name == "dsinks":
            limit = max(limit, LIMIT[case.sink_dtype])
        error = relative(got[name], tensor)
        assert error <= limit, f"{name}: relative error {error:.3g}, limit {limit:.3g}"


CASES = {
    "plain": Case(sinks=False),
    "sinks": Case(),
    "group_1": Case(hq=4, hkv=4),
    "group_8": Case(hq=8, hkv=1),
    "window": Case(window=17),
    "window_1": Case(window=1),
    "full": Case(causal=False),
    "more_keys": Case(sq=20, sk=75),
    "one_row": Case(sq=1, sk=64),
    "rows_that_see_nothing": Case(sq=75, sk=20),
    "rows_that_see_nothing_plain": Case(sq=75, sk=20, sinks=False),
    "several_tiles": Case(b=1, sq=300, sk=300, window=130),
    "packed": Case(b=1, cu_q=(0, 5, 5, 40, 70), cu_k=(0, 5, 5, 40, 70)),
    "packed_window": Case(b=1, window=9, cu_q=(0, 30, 70), cu_k=(0, 30, 70)),
    "packed_longer_keys": Case(b=1, sq=30, sk=70, cu_q=(0, 10, 30), cu_k=(0, 35, 70)),
    "bshd": Case(layout="bshd"),
    "bshd_packed": Case(b=1, layout="bshd", cu_q=(0, 30, 70), cu_k=(0, 30, 70)),
    "head_dim_48": Case(d=48),
    "sinks_bf16": Case(sink_dtype=torch.bfloat16),
}
