# SPDX-License-Identifier: Apache-2.0
"""torch.compile of a whole GPT-OSS under attention_sink: no graph break, and the numbers of the model as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from test_transformers import models, packed, step, tokens  # noqa: E402, F401  (models is a fixture)

from sinkscope import _tokens  # noqa: E402


def left_padding() -> Tensor:
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[1, :7] = 0
    return mask


def batches() -> dict[str, tuple[Tensor, dict[str, object]]]:
    """Tokens and the rest of a call, for each way to tell documents."""
    row, positions, offsets = packed((13, 1, 22))
    offsets_too = {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": 22, "max_length_k": 22}
    mask = torch.ones(1, 36, dtype=torch.long)
    mask[:, 30:] = 0
    return {"nothing": (tokens(2, 24), {}), "positions": (row, {"position_ids": positions}),
            "offsets": (row, {"position_ids": positions} | offsets_too),
            "mask": (tokens(2, 24), {"attention_mask": left_padding()}),
            "mask and positions": (row, {"position_ids": positions, "attention_mask": mask})}


@pytest.fixture(scope="module")
def compilable(models: dict[str, nn.Module]) -> None:  # noqa: F811
    """Skips where the model does not compile under transformers' own attention either."""
    torch._dynamo.reset()
    whole = torch.compile(models["eager"], fullgraph=True, backend="aot_eager")
    try:
        whole(tokens(1, 8), use_cache=False).logits.sum().backward()
    except torch._dynamo.exc.TorchDynamoException as error:
        pytest.skip(f"transformers {transformers.__version__} does not compile GPT-OSS under eager: {str(error)[:150]}")


@pytest.mark.parametrize("told_by", batches())
def test_a_step_without_graph_breaks(compilable: None, models: dict[str, nn.Module], told_by: str) -> None:  # noqa: F811
    row, inputs = batches()[told_by]
    model = models["attention_sink"]
    want, want_gradients = step(model, row, **inputs)
    torch._dynamo.reset()
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    got = whole(row, use_cache=False, **inputs).logits
    there = inputs.get("attention_mask", torch.ones_like(row)).bool()
    both = there[:, 1:] & there[:, :-1]
    nn.functional.cross_entropy(got[:, :-1][both], row[:, 1:][both]).backward()
    torch.testing.assert_close(got.detach()[there], want[there], rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want_gradients[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_other_documents_take_no_other_graph(models: dict[str, nn.Module]) -> None:  # noqa: F811
    model = models["attention_sink"]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    whole = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        for lengths in ((13, 1, 22), (30, 6), (9, 9, 9, 9)):
            row, positions, _ = packed(lengths)
            torch.testing.assert_close(whole(row, position_ids=positions, use_cache=False).logits,
                                       model(row, position_ids=positions, use_cache=False).logits, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_zeros_beside_offsets_fail_when_the_graph_runs(compilable: None, models: dict[str, nn.Module]) -> None:  # noqa: F811
    row, positions, offsets = packed((13, 23))
    mask = torch.ones(1, 36, dtype=torch.long)
    mask[0, 35] = 0
    torch._dynamo.reset()
    whole = torch.compile(models["attention_sink"], fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="supported is one of them"):
        whole(row, attention_mask=mask, position_ids=positions, cu_seq_lens_q=offsets, cu_seq_lens_k=offsets, use_cache=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(dtype: torch.dtype, masked: bool) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 24, heads, 32, generator=g).to(dtype).requires_grad_() for heads in (4, 2, 2))
    sinks = torch.randn(4, generator=g).requires_grad_()
    positions = torch.cat([torch.arange(20), torch.arange(4)]).expand(2, -1)
    told = (left_padding() if masked else None, positions)
    torch.library.opcheck(_tokens._forward, (q, k, v, sinks, *told, True, 0.2, 6, True))
    detached = [t.detach() for t in (q, k, v, sinks)]
    results = _tokens._forward(*detached, *told, True, 0.2, 6, True)
    for needed in ((True,) * 4, (True, False, False, True)):
        torch.library.opcheck(_tokens._backward, (torch.ones_like(q), *detached, *results, *told, True, 0.2, 6, *needed))
