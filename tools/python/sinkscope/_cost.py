# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the attention calls that a training step makes, measured here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sinkscope._intercept import intercepted


@dataclass
class Cost:
    """Of one attention call: the median time of forward and backward, and what the forward keeps for the backward."""

    layer: int
    milliseconds: float
    kept_bytes: int


def _measure(call: Callable[..., Any], inputs: tuple[torch.Tensor, ...], repeats: int) -> tuple[float, int]:
    times, kept = [], 0
    for _ in range(repeats):
        leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        _synchronize(leaves[0])
        start = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = call(*leaves)[0]
        torch.autograd.grad(out, leaves, torch.ones_like(out))
        _synchronize(leaves[0])
        times.append(time.perf_counter() - start)
        kept = sum(storages.values())
    return sorted(times)[len(times) // 2] * 1e3, kept


def _synchronize(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def measure_cost(model: torch.nn.Module, step: Callable[[], None], repeats: int = 5) -> list[Cost]:
    """Runs `step` once and measures every attention call of `model` in it, by layer, with its own arguments."""
    mine = {id(module) for module in model.modules()}
    costs: list[Cost] = []

    def visit(function: Callable[..., Any], module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
              value: torch.Tensor, *rest: Any, **keywords: Any) -> Any:
        if id(module) in mine and torch.is_grad_enabled():
            time_, kept = _measure(lambda q, k, v: function(module, q, k, v, *rest, **keywords), (query, key, value), repeats)
            costs.append(Cost(int(getattr(module, "layer_idx", len(costs))), time_, kept))
        return function(module, query, key, value, *rest, **keywords)

    with intercepted(visit):
        step()
    return costs
