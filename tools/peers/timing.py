# SPDX-License-Identifier: Apache-2.0
"""Times single launches by the device's clock, as `sinkscope bench kernel` does: the L2 flushed before each, the stream
kept busy until the host has enqueued everything, contestants in turns."""
import statistics
from collections.abc import Callable

import torch

WARM_UP_ROUNDS = 3
GEMM_SIZE = 8192
GEMM_FLOPS = 2 * GEMM_SIZE**3
COPY_BYTES = 2**31
FLUSH_BYTES = 2**29
SLEEP_CYCLES = 6_000_000  # about 3 ms, longer than any contestant's work on the host


class Timer:
    def __init__(self):
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self.start, self.stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def milliseconds(self, enqueue: Callable[[], None]) -> float:
        torch.cuda._sleep(SLEEP_CYCLES)
        self.flush.zero_()
        self.start.record()
        enqueue()
        self.stop.record()
        self.stop.synchronize()
        return self.start.elapsed_time(self.stop)


class Rates:
    """The machine's own matrix product and copy."""

    def __init__(self):
        self.a, self.b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        self.product = torch.empty_like(self.a)
        self.source, self.target = (torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))

    def passes(self) -> dict[str, Callable[[], None]]:
        return {"gemm": lambda: torch.mm(self.a, self.b, out=self.product), "copy": lambda: self.target.copy_(self.source)}


def interleaved(passes: list[tuple[str, Callable[[], None]]], timer: Timer, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each pass in each round. Names are (contestant, pass) or a rate's; a backward follows its forward."""
    times = {name: [] for name, _ in passes}
    for round_ in range(-WARM_UP_ROUNDS, rounds):
        for name, enqueue in passes:
            milliseconds = timer.milliseconds(enqueue)
            if round_ >= 0:
                times[name].append(milliseconds)
    return times


def spread(values: list[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "q1": q1, "q3": q3, "min": min(values), "max": max(values), "rounds": len(values)}
