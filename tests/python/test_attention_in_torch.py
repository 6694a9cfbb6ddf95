# SPDX-License-Identifier: Apache-2.0
"""sinkscope.attention among torch's own machinery: opcheck, torch.compile, checkpointing, autocast, DTensor and FSDP."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from attention_cases import Case, relative, results_of
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import sinkscope

OPERATORS = torch.ops.sinkscope
CASES = {
    "sinks": Case(sq=9, sk=12),
    "plain": Case(sq=9, sk=9, sinks=False),
    "packed_window_bshd": Case(b=1, sq=9, sk=9, window=3, layout="bshd", cu_q=(0, 4, 9), cu_k=(0, 4, 9)),
    "bf16": Case(sq=9, sk=9, dtype=torch.bfloat16),
    "float64": Case(sq=5, sk=5, d=8, dtype=torch.float64, sink_dtype=torch.float64),
}


def forward_arguments(case: Case, inputs: list[Tensor], with_residual: bool) -> tuple:
    sinks = inputs[3] if case.sinks else None
    return (*inputs[:3], sinks, *case.offsets(), case.causal, 0.125, case.window, case.layout == "bshd", with_residual)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_opcheck_of_the_forward(name: str, with_residual: bool) -> None:
    case = CASES[name]
    torch.library.opcheck(OPERATORS.attention_forward.default, forward_arguments(case, case.inputs(), with_residual))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("needed", [(True, True, True, True), (False, True, False, False)])
def test_opcheck_of_the_backward(name: str, needed: tuple[bool, ...]) -> None:
    case = CASES[name]
    inputs = [t.detach() for t in case.inputs()]
    arguments = forward_arguments(case, inputs, True)
    out, lse, residual = OPERATORS.attention_forward(*arguments)
    needed = (*needed[:3], needed[3] and case.sinks)
    torch.library.opcheck(OPERATORS.attention_backward.default,
                          (inputs[4], inputs[5], *arguments[:4], out, lse, residual, *arguments[4:-1], *needed))


def compiled(function: Callable, **options: object) -> Callable:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch.compile(function, fullgraph=True, **options)


@pytest.mark.parametrize("name", CASES)
def test_compiled_without_graph_breaks_it_gives_the_same_bits(name: str) -> None:
    case = CASES[name]
    ref = results_of(case, case.inputs())
    q, k, v, sinks, dout, dlse = case.inputs()
    out, lse = compiled(case.call, backend="aot_eager")(q, k, v, sinks)
    torch.autograd.backward([out, lse], [dout, dlse])
    got = {"out": out, "lse": lse, "dq": q.grad, "dk": k.grad, "dv": v.grad, "dsinks": sinks.grad}
    for key, tensor in ref.items():
        # The truth's sums follow the alignment of its memory.
        same = relative(got[key], tensor) < 1e-14 if case.dtype == torch.float64 else torch.equal(got[key], tensor)
        assert same, key


def block(x: Tensor, weight: Tensor, sinks: Tensor) -> Tensor:
    """A layer around attention: x [B, S, 4 * 64]."""
    q, k, v = (x @ weight).view(*x.shape[:2], 8, 64).split([4, 2, 2], 2)
    out = sinkscope.attention(q, k, v, sinks, bandwidth=5, layout="bshd")
    return torch.nn.functional.silu(out.flatten(2)) + x


def layer_inputs(rows: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = ((2, rows, 256), (256, 512), (4,))
    x, weight, sinks = (torch.randn(shape, generator=g) for shape in shapes)
    return x.requires_grad_(), (weight / 16).requires_grad_(), sinks.requires_grad_()


def gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


def test_inductor_and_changing_lengths() -> None:
    function = compiled(block, dynamic=True)
    for rows in (12, 17, 31):
        inputs = layer_inputs(rows)
        for got, ref in zip(gradients(function, inputs), gradients(block, inputs)):
            torch.testing.assert_close(got, ref, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_bits(reentrant: bool) -> None:
    inputs = layer_inputs()
    x, weight, sinks = layer_inputs()
    out = checkpoint(block, x, weight, sinks, use_reentrant=reentrant)
    out.square().sum().backward()
    for got, ref in zip((out, x.grad, weight.grad, sinks.grad), gradients(block, inputs)):
        assert torch.equal(got, ref)


def test_compiled_checkpoint() -> None:
    inputs = layer_inputs()

    def step(x: Tensor, weight: Tensor, sinks: Tensor) -> Tensor:
        return checkpoint(block, x, weight, sinks, use_reentrant=False)

    for got, ref in zip(gradients(compiled(step, backend="aot_eager"), inputs), gradients(block, inputs)):
        torch.testing.assert_close(got, ref)


def test_autocast_takes_q_k_v_and_leaves_the_sinks() -> None:
    case = Case()
    q, k, v, sinks, dout, _ = case.inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = sinkscope.attention(q, k, v, sinks)
    assert out.dtype == torch.bfloat16
    out.backward(dout.bfloat16())
    assert [t.grad.dtype for t in (q, k, v, sinks)] == [torch.float32] * 4
    with torch.no_grad():
        ref = sinkscope.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), sinks)
        rounded = sinkscope.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), sinks.bfloat16())
    assert torch.equal(out, ref) and not torch.equal(out, rounded)
    function = compiled(lambda *t: sinkscope.attention(*t), backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(q, k, v, sinks), ref)
    double = [t.detach().double() for t in (q, k, v, sinks)]
    with torch.autocast("cpu", torch.bfloat16):
        assert sinkscope.attention(*double).dtype == torch.float64


def test_the_residual_makes_the_gradients_better() -> None:
    """bf16 with a large mean in v: Delta of the rounded out is off by more than all else."""
    exact = Case(dtype=torch.float64, sink_dtype=torch.float64)
    q, k, v, sinks, dout, dlse = (t.detach() for t in Case(dtype=torch.bfloat16).inputs())
    v = v + 8
    wide = [t.double().requires_grad_() for t in (q, k, v, sinks)]
    ref = results_of(exact, [*wide, dout.double(), torch.zeros_like(dlse).double()])
    out, lse, _ = OPERATORS.attention_forward(q, k, v, sinks, None, None, True, 0.125, 0, False, False)
    without = OPERATORS.attention_backward(dout, None, q, k, v, sinks, out, lse, None, None, None, True, 0.125, 0, False,
                                           True, True, False, True)
    leaves = [t.clone().requires_grad_() for t in (q, k, v, sinks)]
    sinkscope.attention(*leaves).backward(dout)
    for name, leaf, worse in (("dq", leaves[0], without[0]), ("dk", leaves[1], without[1]), ("dsinks", leaves[3], without[3])):
        assert relative(leaf.grad, ref[name]) < 0.5 * relative(worse, ref[name]), name


@pytest.fixture
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_dtensor_of_sinks_is_taken_and_gets_its_gradient(one_rank: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    case = Case()
    q, k, v, sinks, dout, _ = case.inputs()
    sinkscope.attention(q, k, v, sinks).backward(dout)
    mesh = init_device_mesh("cpu", (1,))
    wrapped = torch.nn.Parameter(distribute_tensor(sinks.detach(), mesh, [Shard(0)]))
    sinkscope.attention(q, k, v, wrapped).backward(dout)
    assert isinstance(wrapped.grad, DTensor)
    assert torch.equal(wrapped.grad.full_tensor(), sinks.grad)
    with pytest.raises(ValueError, match=r"sinks is a DTensor of shape \[4\], \[4\] on this rank, beside 2 heads"):
        sinkscope.attention(q[:, :2], k, v, wrapped)
    with pytest.raises(TypeError, match="q is a DTensor; supported: plain tensors"):
        sinkscope.attention(distribute_tensor(q.detach(), mesh, [Shard(0)]), k, v, sinks)


def test_a_shard_of_sinks_goes_with_the_heads_of_its_rank() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    case = Case()
    q, k, v, sinks, dout, _ = case.inputs()
    sinkscope.attention(q, k, v, sinks).backward(dout)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        shard = DTensor.from_local(sinks.detach().clone(), init_device_mesh("cpu", (2,)), [Shard(0)]).requires_grad_()
        assert shard.shape == (2 * case.hq,)
        sinkscope.attention(q, k, v, shard).backward(dout)
        assert torch.equal(shard.grad.to_local(), sinks.grad)
    finally:
        torch.distributed.destroy_process_group()


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, weight, sinks = layer_inputs()
        self.weight = torch.nn.Parameter(weight.detach().clone())
        self.sinks = torch.nn.Parameter(sinks.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return block(x, self.weight, self.sinks)


def test_fully_sharded_sinks_get_the_same_gradient(one_rank: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    x = layer_inputs()[0].detach()
    plain, sharded = Layer(), fully_shard(Layer(), mesh=init_device_mesh("cpu", (1,)))
    assert isinstance(sharded.sinks, DTensor)
    for layer in (plain, sharded):
        layer(x).square().sum().backward()
    for name in ("sinks", "weight"):
        assert torch.equal(getattr(sharded, name).grad.full_tensor(), getattr(plain, name).grad), name
