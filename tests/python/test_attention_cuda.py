# SPDX-License-Identifier: Apache-2.0
"""sinkscope.attention on a GPU of compute capability 9.0: the CUDA backend behind the operator. Skipped without one, with
the reason; SINKSCOPE_REQUIRE_GPU=1 makes them fail instead."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from attention_cases import CASES, Case, assert_right, changed, relative, results_of
from test_attention_in_torch import compiled, forward_arguments

import sinkscope


def unavailable() -> str:
    if sinkscope.backends().endswith("cuda none"):
        return f"this build has no CUDA backend ({sinkscope.backends()})"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    capability = torch.cuda.get_device_capability()
    return "" if capability == (9, 0) else f"a GPU of compute capability {capability[0]}.{capability[1]}, wanted 9.0"


REASON = unavailable()
pytestmark = pytest.mark.skipif(bool(REASON) and os.environ.get("SINKSCOPE_REQUIRE_GPU") != "1",
                                reason=f"no GPU to test on: {REASON}")
FORMATS = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", [name for name in CASES if name != "head_dim_48"])
def test_cuda_agrees_with_plain_attention(name: str, dtype: torch.dtype) -> None:
    assert_right(changed(CASES[name], dtype=dtype, device="cuda"))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("window", [0, 128])
def test_gpt_oss_heads_and_head_dim_128(dtype: torch.dtype, window: int) -> None:
    assert_right(Case(dtype=dtype, b=1, hq=64, hkv=8, sq=400, sk=400, window=window, device="cuda"))
    assert_right(Case(dtype=dtype, b=1, hq=8, hkv=8, sq=300, sk=300, d=128, window=window, layout="bshd", device="cuda"))


def test_nothing_to_see() -> None:
    q, k = (torch.randn(2, 4, rows, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for rows in (3, 0))
    sinks = torch.randn(4, device="cuda")
    out, lse = sinkscope.attention(q, k, k, sinks, return_lse=True)
    assert out.count_nonzero() == 0 and torch.equal(lse, sinks.view(1, 4, 1).expand(2, 4, 3))
    out.sum().backward()
    assert q.grad.count_nonzero() == 0 and k.grad.shape == k.shape
    assert sinkscope.attention(k, q, q, sinks).shape == (2, 4, 0, 64)


def test_unaligned_tensors_are_copied() -> None:
    case = Case(dtype=torch.bfloat16, device="cuda")
    q, k, v, sinks = (t.detach() for t in case.inputs()[:4])
    ref = sinkscope.attention(q, k, v, sinks)
    odd_address = torch.empty(q.numel() + 1, dtype=q.dtype, device="cuda")[1:].view_as(q).copy_(q)
    odd_stride = torch.empty(*k.shape[:3], 65, dtype=k.dtype, device="cuda")[..., :64].copy_(k)
    assert odd_address.data_ptr() % 16 == 2 and odd_stride.stride(2) == 65
    assert torch.equal(sinkscope.attention(odd_address, odd_stride, v, sinks), ref)


def test_it_runs_on_the_current_stream() -> None:
    case = Case(dtype=torch.bfloat16, device="cuda")
    q, k, v, sinks, dout, _ = case.inputs()
    ref = sinkscope.attention(q, k, v, sinks)
    ref.backward(dout)
    late = [torch.zeros_like(t).requires_grad_() for t in (q, k, v, sinks)]
    sinkscope.attention(*late)  # what is loaded lazily is loaded now
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        with torch.no_grad():
            for t, value in zip(late, (q, k, v, sinks)):
                t.copy_(value)
        out = sinkscope.attention(*late)
        out.backward(dout)
    stream.synchronize()
    assert torch.equal(out, ref)
    for got, wanted in zip(late, (q, k, v, sinks)):
        assert torch.equal(got.grad, wanted.grad)


def test_a_cuda_graph_holds_it() -> None:
    q, k, v, sinks = (t.detach() for t in Case(dtype=torch.bfloat16, device="cuda").inputs()[:4])
    ref = sinkscope.attention(q, k, v, sinks)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sinkscope.attention(q, k, v, sinks)
    out.zero_()
    graph.replay()
    assert torch.equal(out, ref)


def test_opcheck_and_compile() -> None:
    case = Case(sq=70, sk=70, dtype=torch.bfloat16, device="cuda")
    torch.library.opcheck(torch.ops.sinkscope.attention_forward.default, forward_arguments(case, case.inputs(), True))
    ref = results_of(case, case.inputs())
    q, k, v, sinks, dout, dlse = case.inputs()
    out, lse = compiled(case.call)(q, k, v, sinks)
    torch.autograd.backward([out, lse], [dout, dlse])
    for got, name in ((out, "out"), (lse, "lse"), (q.grad, "dq"), (k.grad, "dk"), (v.grad, "dv"), (sinks.grad, "dsinks")):
        assert torch.equal(got, ref[name]), name


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("told_by", ["mask", "positions"])
def test_documents_told_by_values_compile(told_by: str, mode: str) -> None:
    registration = pytest.importorskip("sinkscope.transformers")
    case = Case(sq=70, sk=70, dtype=torch.bfloat16, device="cuda")
    mask = torch.ones(2, 70, dtype=torch.bool, device="cuda")
    mask[1, :33] = False
    positions = torch.cat([torch.arange(50), torch.arange(20)]).expand(2, -1).to("cuda")
    told = {"attention_mask": mask} if told_by == "mask" else {"position_ids": positions}

    def results(function: Callable) -> list[torch.Tensor]:
        q, k, v, sinks, dout, _ = case.inputs()
        out = function(q, k, v, sinks)
        out.backward(dout.transpose(1, 2))
        return [out.detach().clone(), q.grad, k.grad, v.grad, sinks.grad]

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        return registration.attention_sink(torch.nn.Module(), q, k, v, s_aux=sinks, sliding_window=20, **told)[0]

    refs = results(attention)
    function = compiled(attention, mode=mode)
    for _ in range(3):  # a graph is recorded in the second call
        for got, ref in zip(results(function), refs):
            assert torch.equal(got, ref)


def test_autocast() -> None:
    case = Case(device="cuda")
    q, k, v, sinks, dout, _ = case.inputs()
    with torch.autocast("cuda", torch.float16):
        out = sinkscope.attention(q, k, v, sinks)
    assert out.dtype == torch.float16
    out.backward(dout.half())
    assert [t.grad.dtype for t in (q, k, v, sinks)] == [torch.float32] * 4
    assert relative(out, sinkscope.attention(*(t.detach().cpu() for t in (q, k, v, sinks)))) < 1e-3


def test_what_a_gpu_cannot_is_refused() -> None:
    def draw(d: int = 64, **options: object) -> torch.Tensor:
        return torch.randn(1, 2, 8, d, device="cuda", **options)

    with pytest.raises(TypeError, match="q is float32 on cuda; supported: bfloat16, float16"):
        sinkscope.attention(draw(), draw(), draw())
    half = [draw(96, dtype=torch.bfloat16) for _ in range(3)]
    with pytest.raises(ValueError, match="q has head dim 96 on cuda; supported: 64, 128"):
        sinkscope.attention(*half)
    half = [draw(dtype=torch.bfloat16) for _ in range(3)]
    with pytest.raises(ValueError, match="sinks is on cpu and q on cuda:0; supported: one device"):
        sinkscope.attention(*half, torch.zeros(2))
