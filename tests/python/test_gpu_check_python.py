# SPDX-License-Identifier: Apache-2.0
"""tools/gpu_check_python on a CPU at small sizes: it runs, it says what is missing, and it finds an operator that is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="tools/gpu_check_python needs transformers")
pytest.importorskip("safetensors", reason="tools/gpu_check_python stores captures")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from gpu_python import equality, models, sweep  # noqa: E402

import sinkscope  # noqa: E402


class Report:
    """What a part says, as the script's own report takes it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failures: list[str] = []

    def add(self, *lines: str) -> None:
        self.lines += lines

    def table(self, head: list[str], rows: list[list[str]]) -> None:
        self.lines += [" | ".join(cells) for cells in (head, *rows)]

    def failed(self, sentence: str) -> None:
        self.failures.append(sentence)


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    named = os.environ.get("SINKSCOPE_EXECUTABLE")
    places = [Path(named)] if named else [ROOT / build / "sinkscope" for build in ("build", "build-cuda")]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        pytest.skip(f"no sinkscope command at {', '.join(map(str, places))}")
    monkeypatch.setenv("SINKSCOPE_EXECUTABLE", str(place))


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "tools/gpu_check_python"), *arguments], capture_output=True, text=True,
                          env={**os.environ, **environment}, check=False)


def test_every_part_but_the_gpus_own_tests_runs_on_a_cpu(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    ran = script("--device", "cpu", "--problems", "6", "--only", "sweep,step,time", "-o", str(page))
    assert ran.returncode == 0, ran.stderr
    text = page.read_text()
    assert text.startswith("# Python package: passed")
    assert "| out | 6 passed |" in text and "| dsinks | " in text
    for name in ("| attention_sink_bf16 | ", "| eager_bf16 | ", "| packed | ", "| padded on the left | "):
        assert text.count(name) == 1, name
    assert text.count("| attention_sink | ") == 3 and text.count("| eager | ") == 3  # a step, a window, full


def test_what_it_cannot_do_ends_with_2_or_3(tmp_path: Path) -> None:
    unknown = script("--only", "swep", "--device", "cpu")
    assert unknown.returncode == 2 and "swep; wanted some of tests, sweep, step, time" in unknown.stderr
    no_gpu = script(CUDA_VISIBLE_DEVICES="")
    assert no_gpu.returncode == 3 and "no GPU" in no_gpu.stderr
    no_command = script("--device", "cpu", "--only", "sweep", SINKSCOPE_EXECUTABLE=str(tmp_path / "absent"))
    assert no_command.returncode == 3 and "SINKSCOPE_EXECUTABLE must be" in no_command.stderr


def test_the_sweep_finds_a_wrong_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = sweep.attention_of

    def large(inputs: dict[str, Tensor], meta: dict[str, str]) -> dict[str, Tensor]:
        found = right(inputs, meta)
        return {**found, "out": found["out"] * 1.05}

    monkeypatch.setattr(sweep, "attention_of", large)
    report = Report()
    sweep.run(report, tmp_path, "cpu", 4)
    assert report.failures and all(sentence.startswith("sweep: out: ") for sentence in report.failures), report.failures


def test_the_sweep_finds_bits_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = sweep.attention_of, []

    def another_each_time(inputs: dict[str, Tensor], meta: dict[str, str]) -> dict[str, Tensor]:
        calls.append(meta)
        found = right(inputs, meta)
        return {**found, "lse": found["lse"] + 1e-7 * (len(calls) % 2)}

    monkeypatch.setattr(sweep, "attention_of", another_each_time)
    report = Report()
    sweep.run(report, tmp_path, "cpu", 2)
    assert any("two runs differ" in sentence for sentence in report.failures), report.failures


def test_the_step_finds_sinks_that_are_left_out() -> None:
    models.register()

    def without_sinks(module: object, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float,
                      sliding_window: int | None = None, **_: object) -> tuple[Tensor, None]:
        return sinkscope.attention(q, k, v, sm_scale=scaling, bandwidth=sliding_window or 0).transpose(1, 2), None

    transformers.AttentionInterface.register("attention_sink_bf16", models.in_format(without_sinks, torch.bfloat16))
    report = Report()
    try:
        equality.run(report, "cpu", True, 300)
    finally:
        models.register()
    for what in ("logits", "q_proj.weight", "sinks", "all gradients"):
        assert any(sentence.startswith(f"step: {what} of attention_sink in bf16") for sentence in report.failures), what
