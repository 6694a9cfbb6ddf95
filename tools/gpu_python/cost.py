# SPDX-License-Identifier: Apache-2.0
"""Time and memory of training steps, and of attention alone, by implementation: in turns, repeated, in bf16."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from gpu_python import models
from gpu_report import Report
from torch import nn

ROUNDS = 7


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _seconds(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Of one run, and the GiB that it needed beyond what was there."""
    _synchronize(device)
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    _synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
    return seconds, peak / 2**30


def in_turns(works: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, tuple[list[float], float] | str]:
    """Seconds of each round and peak GiB by name, or why it could not run. One round is thrown away."""
    found: dict[str, tuple[list[float], float] | str] = {name: ([], 0.0) for name in works}
    for round_ in range(-1, rounds):
        for name, work in works.items():
            if isinstance(found[name], str):
                continue
            try:
                seconds, peak = _seconds(work, device)
            except torch.OutOfMemoryError:
                found[name] = "out of memory"
                torch.cuda.empty_cache()
                continue
            except Exception as error:  # one contestant that does not run here is no reason to lose the others
                found[name] = f"does not run: {str(error).partition(chr(10))[0][:100]}"
                continue
            if round_ >= 0:
                found[name][0].append(seconds)
                found[name] = (found[name][0], peak)
    return found


def _row(name: str, found: tuple[list[float], float] | str, mine: tuple[list[float], float] | str) -> list[str]:
    if isinstance(found, str):
        return [name, found, "", "", ""]
    times, peak = found
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    ratio = median / statistics.median(mine[0]) if not isinstance(mine, str) else float("nan")
    return [name, f"{median * 1e3:.2f}", f"{q1 * 1e3:.2f} to {q3 * 1e3:.2f}", f"{ratio:.2f}x", f"{peak:.2f}"]


def _steps(of: nn.Module, names: list[str], rows: int, device: str) -> dict[str, Callable[[], object]]:
    ids = models.tokens(rows, device)

    def work(name: str) -> Callable[[], object]:
        def once() -> None:
            of.set_attn_implementation(name)
            models.step(of, ids)
            of.zero_grad(set_to_none=True)  # else the next run would begin with these and count so much less
        return once
    return {name: work(name) for name in names}


def _attention(of: nn.Module, names: list[str], rows: int, device: str, window: int) -> dict[str, Callable[[], object]]:
    """One layer's attention function, forward and backward, on tensors as the projections leave them."""
    shape = of.config
    layer = of.model.layers[0 if window else 1].self_attn
    draw = torch.Generator(device).manual_seed(3)
    q, k, v = (torch.randn(1, rows, heads, shape.head_dim, generator=draw, device=device, dtype=torch.bfloat16)
               .transpose(1, 2).requires_grad_() for heads in (shape.num_attention_heads, *[shape.num_key_value_heads] * 2))
    gradient = torch.randn(1, rows, shape.num_attention_heads, shape.head_dim, generator=draw, device=device,
                           dtype=torch.bfloat16)
    back = torch.arange(rows, device=device)[:, None] - torch.arange(rows, device=device)  # rows from a key to its row
    hidden = (back < 0) | (back >= (window or rows))
    mask = torch.zeros(1, 1, rows, rows, device=device, dtype=torch.bfloat16).masked_fill(hidden, torch.finfo(torch.bfloat16).min)

    def work(name: str) -> Callable[[], object]:
        function, _ = models.FUNCTIONS[name]

        def once() -> None:
            out = function(layer, q, k, v, mask if name == "eager" else None, scaling=layer.scaling, dropout=0.0,
                           sliding_window=window or None, s_aux=layer.sinks)[0]
            torch.autograd.grad(out, (q, k, v, layer.sinks), gradient, allow_unused=True)
        return once
    return {name: work(name) for name in names}


def run(report: Report, device: str, small: bool, lengths: list[int]) -> None:
    of = models.model(small, device).to(torch.bfloat16)
    names = [name for name in models.FUNCTIONS if device == "cuda" or name != "fa2_without_sinks"]
    head = ["attention", "median ms", "middle half", "over attention_sink", "GiB"]
    report.add("", "## Time and memory", "",
               f"The same model in bf16, forward and backward, {ROUNDS} rounds in turns after one that is thrown away. "
               "`fa2_without_sinks` is ATen's flash attention 2 and computes another function: it is here for its time. GiB is "
               "the most that a run allocated beyond the model.")
    for rows in lengths:
        report.add("", f"Training step, {rows} tokens:", "")
        found = in_turns(_steps(of, names, rows, device), device, ROUNDS)
        report.table(head, [_row(name, found[name], found["attention_sink"]) for name in names])
        if isinstance(found["attention_sink"], str):
            report.failed(f"time: attention_sink at {rows} tokens {found['attention_sink']}")
        for window in (of.config.sliding_window, 0):
            report.add("", f"Attention of one layer, {rows} tokens, {f'window {window}' if window else 'full'}:", "")
            found = in_turns(_attention(of, names, rows, device, window), device, ROUNDS)
            report.table(head, [_row(name, found[name], found["attention_sink"]) for name in names])
