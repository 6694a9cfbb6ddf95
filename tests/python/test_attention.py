# SPDX-License-Identifier: Apache-2.0
"""sinkscope.attention on a CPU, held to plain torch in double precision: values, every gradient, masks, layouts, errors."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from attention_cases import CASES, LIMIT, Case, assert_right, changed, reference_of, relative, results_of
from plain_attention import plain_attention, visible
from torch import Tensor

import sinkscope


@pytest.mark.parametrize("name", CASES)
def test_fp32_agrees_with_plain_attention(name: str) -> None:
    assert_right(CASES[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "sinks", "window", "packed", "bshd", "group_8", "sinks_bf16"])
def test_16_bit_formats_agree_with_plain_attention(name: str, dtype: torch.dtype) -> None:
    assert_right(changed(CASES[name], dtype=dtype))


@pytest.mark.parametrize("name", ["plain", "sinks", "window", "packed", "packed_longer_keys", "bshd", "full"])
def test_float64_is_the_truth(name: str) -> None:
    assert_right(changed(CASES[name], dtype=torch.float64, sink_dtype=torch.float64))


@pytest.mark.parametrize("case", [
    Case(b=1, hq=2, hkv=1, sq=5, sk=5, d=4), Case(b=1, hq=2, hkv=2, sq=6, sk=6, d=3, window=2),
    Case(b=1, hq=2, hkv=1, sq=6, sk=6, d=3, layout="bshd", cu_q=(0, 2, 6), cu_k=(0, 2, 6)),
    Case(b=2, hq=2, hkv=1, sq=3, sk=5, d=4, sinks=False), Case(b=1, hq=2, hkv=1, sq=3, sk=3, d=3, causal=False)])
def test_gradcheck_in_double(case: Case) -> None:
    case = changed(case, dtype=torch.float64, sink_dtype=torch.float64)
    q, k, v, sinks = case.inputs()[:4]
    inputs = (q, k, v, sinks) if case.sinks else (q, k, v)
    assert torch.autograd.gradcheck(lambda *t: case.call(*t[:3], t[3] if case.sinks else None), inputs)


def test_the_gradient_through_lse_alone() -> None:
    case = Case()
    inputs = case.inputs()
    inputs[4] = torch.zeros_like(inputs[4])
    ref = reference_of(case, inputs)
    q, k, v, sinks, _, dlse = inputs
    _, lse = case.call(q, k, v, sinks)
    lse.backward(dlse)
    for name, got in (("dq", q.grad), ("dk", k.grad), ("dsinks", sinks.grad)):
        assert relative(got, ref[name]) < LIMIT[case.dtype], name
    assert v.grad.count_nonzero() == 0


def test_sinks_of_minus_infinity_change_nothing() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case, plain = Case(dtype=dtype), Case(dtype=dtype, sinks=False)
        inputs, plain_inputs = case.inputs(), plain.inputs()
        with torch.no_grad():
            inputs[3].fill_(-torch.inf)
        got, ref = results_of(case, inputs), results_of(plain, plain_inputs)
        for name, tensor in ref.items():
            assert torch.equal(got[name], tensor), f"{name} of {dtype}"
        assert torch.equal(got["dsinks"], torch.zeros(case.hq))


def test_layouts_and_strides_give_the_same_bits() -> None:
    case = Case(dtype=torch.bfloat16)
    q, k, v, sinks, dout, dlse = case.inputs()
    ref = results_of(case, [q, k, v, sinks, dout, dlse])

    def other(t: Tensor) -> Tensor:
        return t.detach().transpose(1, 2).contiguous().requires_grad_()

    by_rows = [other(q), other(k), other(v), sinks.detach().clone().requires_grad_(), other(dout).detach(), dlse]
    got = results_of(Case(dtype=torch.bfloat16, layout="bshd"), by_rows)
    for name in ("out", "dq", "dk", "dv"):
        assert got[name].is_contiguous() and torch.equal(got[name].transpose(1, 2), ref[name]), name
    assert torch.equal(got["lse"], ref["lse"]) and torch.equal(got["dsinks"], ref["dsinks"])
    out = sinkscope.attention(by_rows[0].transpose(1, 2), by_rows[1].transpose(1, 2), by_rows[2].transpose(1, 2), sinks)
    assert torch.equal(out, ref["out"]), "transposed views"
    strided = [torch.stack([t, t], -1).flatten(-2)[..., ::2] for t in (q, k, v)]
    assert strided[0].stride(-1) == 2
    assert torch.equal(sinkscope.attention(*strided, sinks), ref["out"]), "d not contiguous"
    one_head = k[:, :1]
    expanded = sinkscope.attention(q, one_head.expand(-1, 4, -1, -1), one_head.expand(-1, 4, -1, -1), sinks)
    assert torch.equal(expanded, sinkscope.attention(q, one_head, one_head, sinks)), "stride 0"


def test_a_packed_row_equals_its_documents_alone() -> None:
    cu = (0, 13, 64, 100)
    for dtype in (torch.float32, torch.bfloat16):
        packed = Case(dtype=dtype, b=1, sq=100, sk=100, window=20, cu_q=cu, cu_k=cu)
        inputs = packed.inputs()
        got = results_of(packed, inputs)
        dsinks = torch.zeros(packed.hq)
        for start, end in zip(cu, cu[1:]):
            alone = Case(dtype=dtype, b=1, sq=end - start, sk=end - start, window=20)
            part = [t.detach()[:, :, start:end].clone() for t in (*inputs[:3], *inputs[4:])]
            sinks = inputs[3].detach().clone().requires_grad_()
            ref = results_of(alone, [*(t.requires_grad_() for t in part[:3]), sinks, *part[3:]])
            dsinks += ref["dsinks"]
            for name in ("out", "lse", "dq", "dk", "dv"):
                assert torch.equal(got[name][:, :, start:end], ref[name]), f"{name} of {dtype}, rows {start} to {end}"
        torch.testing.assert_close(got["dsinks"], dsinks, rtol=1e-5, atol=1e-6)


def test_a_window_as_wide_as_the_row_is_no_window() -> None:
    q, k, v, sinks = Case().inputs()[:4]
    assert torch.equal(sinkscope.attention(q, k, v, sinks, bandwidth=70), sinkscope.attention(q, k, v, sinks))
    assert not torch.equal(sinkscope.attention(q, k, v, sinks, bandwidth=69), sinkscope.attention(q, k, v, sinks))


def test_sm_scale_multiplies_the_scores() -> None:
    q, k, v, sinks = Case().inputs()[:4]
    out, lse = sinkscope.attention(q, k, v, sinks, sm_scale=0.5, return_lse=True)
    ref_out, ref_lse = plain_attention(q, k, v, sinks, visible(70, 70, True, 0), 0.5)
    assert relative(out, ref_out) < 2e-6 and relative(lse, ref_lse) < 2e-6


def test_nothing_to_see() -> None:
    q, k = torch.randn(2, 4, 3, 64, requires_grad=True), torch.randn(2, 2, 0, 64, requires_grad=True)
    sinks = torch.randn(4)
    out, lse = sinkscope.attention(q, k, k, sinks, return_lse=True)
    assert out.count_nonzero() == 0 and torch.equal(lse, sinks.view(1, 4, 1).expand(2, 4, 3))
    out.sum().backward()
    assert q.grad.count_nonzero() == 0 and k.grad.shape == k.shape
    assert sinkscope.attention(q[:, :, :0], k, k, sinks).shape == (2, 4, 0, 64)


def test_gradients_that_nobody_needs_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    backward = torch.ops.sinkscope.attention_backward

    def spy(*args: object) -> object:
        gradients = backward(*args)
        asked.append((args[-4:], [t.numel() > 0 for t in gradients]))
        return gradients

    monkeypatch.setattr(torch.ops.sinkscope, "attention_backward", spy)
    case = Case()
    q, k, v, sinks, dout, _ = case.inputs()
    for wanted in ((True, False, False, False), (False, True, False, True), (False, False, True, False)):
        for t, needs in zip((q, k, v, sinks), wanted):
            t.grad = None
            t.requires_grad_(needs)
        sinkscope.attention(q, k, v, sinks).backward(dout)
        assert asked.pop() == (wanted, list(wanted))
        assert [t.grad is not None for t in (q, k, v, sinks)] == list(wanted)


def test_the_second_derivative_is_refused() -> None:
    q, k, v, sinks = Case(sq=4, sk=4).inputs()[:4]
    (dq,) = torch.autograd.grad(sinkscope.attention(q, k, v, sinks).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dq.sum().backward()


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "tools/python/README.md").read_text()
    example = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "sinkscope.backends()" in block)
    names: dict[str, object] = {}
    exec(example, names)
    assert all(names[name].grad is not None for name in ("q", "k", "v", "sinks"))
    assert capsys.readouterr().out == sinkscope.backends() + "\n"


def tensors(**changes: object) -> dict[str, object]:
    return {"q": torch.randn(1, 4, 8, 64), "k": torch.randn(1, 2, 8, 64), "v": torch.randn(1, 2, 8, 64),
            "sinks": torch.randn(4), **changes}


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"q": torch.randn(4, 8, 64)}, ValueError, r"q has shape \[4, 8, 64\]; supported: \[B, H, S, D\]"),
    ({"q": [1.0]}, TypeError, "q is list; supported: a torch.Tensor"),
    ({"q": torch.ones(1, 4, 8, 64, dtype=torch.int32)}, TypeError, "k is float32 and q int32"),
    ({"k": torch.randn(1, 3, 8, 64), "v": torch.randn(1, 3, 8, 64)}, ValueError, "4 heads and k 3; supported: a multiple"),
    ({"v": torch.randn(1, 2, 9, 64)}, ValueError, r"v has shape \[1, 2, 9, 64\]"),
    ({"k": torch.randn(1, 2, 8, 32)}, ValueError, r"k has shape \[1, 2, 8, 32\]"),
    ({"k": torch.randn(1, 2, 8, 64).half()}, TypeError, "k is float16 and q float32"),
    ({"sinks": torch.randn(2)}, ValueError, r"sinks has shape \[2\]; supported: \[4\]"),
    ({"sinks": torch.randn(4).double()}, TypeError, "sinks is float64; supported: float32, bfloat16, float16"),
    ({"layout": "bsdh"}, ValueError, "layout is 'bsdh'; supported: 'bhsd', 'bshd'"),
    ({"bandwidth": -1}, ValueError, "bandwidth is -1; supported: 0"),
    ({"bandwidth": 4, "causal": False}, ValueError, "bandwidth is 4 with causal False"),
    ({"bandwidth": None}, ValueError, "bandwidth is None; supported: 0"),
    ({"sm_scale": math.nan}, ValueError, "sm_scale is nan; supported: a finite number"),
    ({"cu_seqlens_q": torch.tensor([0, 8], dtype=torch.int32)}, ValueError, "cu_seqlens_k is None"),
    ({"cu_seqlens_q": torch.tensor([0, 8]), "cu_seqlens_k": torch.tensor([0, 8])}, TypeError, "int64; supported: int32"),
    ({"cu_seqlens_q": torch.tensor([0, 7], dtype=torch.int32), "cu_seqlens_k": torch.tensor([0, 8], dtype=torch.int32)},
     RuntimeError, "cu_seqlens_q ends at 7, wanted 8"),
])
def test_errors_name_the_argument_the_value_and_what_is_supported(changes: dict, error: type, message: str) -> None:
    arguments = tensors(**changes)
    with pytest.raises(error, match=message):
        sinkscope.attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), arguments.pop("sinks"), **arguments)


def test_the_operator_itself_refuses_what_would_be_read_out_of_bounds() -> None:
    t = tensors()
    call = torch.ops.sinkscope.attention_forward
    with pytest.raises(RuntimeError, match=r"v has shape \[1, 2, 9, 64\], wanted \[1, 2, 8, 64\]"):
        call(t["q"], t["k"], torch.randn(1, 2, 9, 64), t["sinks"], None, None, True, 0.1, 0, False, False)
    with pytest.raises(RuntimeError, match=r"sinks has shape \[3\], wanted \[4\]"):
        call(t["q"], t["k"], t["v"], torch.randn(3), None, None, True, 0.1, 0, False, False)
    with pytest.raises(RuntimeError, match="window 3 with causal 0"):
        call(t["q"], t["k"], t["v"], t["sinks"], None, None, False, 0.1, 3, False, False)
