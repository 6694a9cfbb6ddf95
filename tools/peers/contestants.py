# SPDX-License-Identifier: Apache-2.0
"""The peers, each with forward(), backward(), outputs() and whether it computes the sink. Names are in CONTESTANTS."""
import torch
from peers.kernel import Library, SinkKernel


class Autograd:
    """A peer that is a differentiable function of q, k, v (and the sinks)."""

    def __init__(self, case, sink: bool):
        self.case, self.sink = case, sink
        self.inputs = [t.clone().requires_grad_() for t in (case.q, case.k, case.v)]
        if sink:
            self.inputs.append(case.sinks.clone().requires_grad_())
        self.out, self.gradients = None, []

    def compute(self, *inputs: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self) -> None:
        self.out = self.compute(*self.inputs)

    def backward(self) -> None:
        self.gradients = torch.autograd.grad(self.out, self.inputs, self.case.dout, retain_graph=True)

    def outputs(self) -> dict[str, torch.Tensor]:
        return {"out": self.out.detach(), **dict(zip(("dq", "dk", "dv", "dsinks"), self.gradients))}


class FlashAttention4(Autograd):
    """flash_attn.cute with learnable sinks; its package is flash-attn-4."""

    def __init__(self, case, sink: bool, deterministic: bool):
        super().__init__(case, sink)
        from flash_attn.cute import flash_attn_func, flash_attn_varlen_func

        self.options = dict(softmax_scale=case.scale, causal=case.causal, deterministic=deterministic,
                            window_size=(case.window - 1, 0) if case.window else (None, None))
        self.batched, self.packed = flash_attn_func, flash_attn_varlen_func

    def compute(self, q, k, v, sinks=None):
        if self.case.offsets is None:
            return first_of(self.batched(q, k, v, learnable_sink=sinks, **self.options))
        longest = max(last - first for first, last in self.case.documents())
        offsets = self.case.offsets
        out = self.packed(q[0], k[0], v[0], cu_seqlens_q=offsets, cu_seqlens_k=offsets, max_seqlen_q=longest,
                          max_seqlen_k=longest, learnable_sink=sinks, **self.options)
        return first_of(out)[None]


class AtenFlashAttention2(Autograd):
    """ATen's own flash attention 2, which knows no sink."""

    def __init__(self, case):
        super().__init__(case, sink=False)

    def compute(self, q, k, v):
        case = self.case
        window = dict(window_size_left=case.window - 1, window_size_right=0) if case.window else {}
        forward = torch.ops.aten._flash_attention_forward
        if case.offsets is None:
            return forward(q, k, v, None, None, q.shape[1], k.shape[1], 0.0, case.causal, False, scale=case.scale, **window)[0]
        longest = max(last - first for first, last in case.documents())
        return forward(q[0], k[0], v[0], case.offsets, case.offsets, longest, longest, 0.0, case.causal, False, scale=case.scale,
                       **window)[0][None]


def first_of(result):
    return result[0] if isinstance(result, tuple) else result


def make(name: str, case, library: Library | None):
    """A contestant of this name. Raises with the reason where it cannot be had."""
    if name.startswith("sink_kernel") and library is None:
        raise RuntimeError("its shared library was not found, see --library")
    return CONTESTANTS[name](case, library)


CONTESTANTS = {
    "sink_kernel": lambda case, library: SinkKernel(library, case, sink=True, residual=False),
    "sink_kernel/residual": lambda case, library: SinkKernel(library, case, sink=True, residual=True),
    "sink_kernel/no_sink": lambda case, library: SinkKernel(library, case, sink=False, residual=False),
    "flash_attention_4": lambda case, _: FlashAttention4(case, sink=True, deterministic=False),
    "flash_attention_4/deterministic": lambda case, _: FlashAttention4(case, sink=True, deterministic=True),
    "flash_attention_4/no_sink": lambda case, _: FlashAttention4(case, sink=False, deterministic=False),
    "flash_attention_2": lambda case, _: AtenFlashAttention2(case),
}
DEFAULT = ("sink_kernel", "sink_kernel/residual", "flash_attention_4", "flash_attention_4/deterministic", "flash_attention_2")
