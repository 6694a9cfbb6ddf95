# SPDX-License-Identifier: Apache-2.0
"""tools/gpu_check_python at small sizes on the CPU: its parts run, and what is wrong is found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="tools/gpu_check_python needs transformers")
pytest.importorskip("safetensors", reason="tools/gpu_check_python needs safetensors")

ROOT = Path(__file__).resolve().parents[2]
needs_command = pytest.mark.skipif(not Path(os.environ.get("SINKSCOPE_EXECUTABLE", "")).is_file(),
                                   reason="needs the sinkscope command (SINKSCOPE_EXECUTABLE)")


class Report:
    """What a part of the script says of failures."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def add(self, *lines: str) -> None: ...

    def table(self, head: list[str], rows: list[list[str]]) -> None: ...

    def failed(self, sentence: str) -> None:
        self.failures.append(sentence)


def check(output: Path, *arguments: str) -> tuple[int, str]:
    ran = subprocess.run([sys.executable, ROOT / "tools/gpu_check_python", "--device", "cpu", "-o", output, *arguments],
                         capture_output=True, text=True, check=False)
    return ran.returncode, output.read_text() if output.exists() else ran.stderr


@needs_command
def test_all_parts_pass_on_a_cpu(tmp_path: Path) -> None:
    code, text = check(tmp_path / "check.md", "--only", "sweep,step,time", "--problems", "24")
    assert code == 0, text
    assert text.startswith("# Python package: passed")
    assert re.search(r"\| out \| 24 passed", text), text
    norms = re.search(r"\| attention_sink_bf16 \|.*", text).group().split("|")
    assert 0 < float(norms[3]) < 0.01 and float(norms[-2]) == pytest.approx(1, abs=1e-3)
    assert text.count("| attention_sink |") == 3 and "does not run" not in text


@needs_command
def test_a_wrong_operator_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinks that are not used: the gate must say so."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from gpu_python import sweep

    import sinkscope

    right = sinkscope.attention
    monkeypatch.setattr(sinkscope, "attention", lambda q, k, v, sinks, **rest: right(
        q, k, v, None if sinks is None else sinks * 0 - 3, **rest))
    report = Report()
    sweep.run(report, tmp_path, "cpu", 8)
    assert any(sentence.startswith("sweep: out: z_") for sentence in report.failures), report.failures


@needs_command
def test_bits_that_differ_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from gpu_python import sweep

    right, calls = sweep.attention_of, []

    def another_each_time(inputs: dict[str, Tensor], meta: dict[str, str]) -> dict[str, Tensor]:
        calls.append(meta)
        found = right(inputs, meta)
        return {**found, "lse": found["lse"] + 1e-7 * (len(calls) % 2)}

    monkeypatch.setattr(sweep, "attention_of", another_each_time)
    report = Report()
    sweep.run(report, tmp_path, "cpu", 2)
    assert any("two runs differ" in sentence for sentence in report.failures), report.failures


def test_a_step_without_sinks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from gpu_python import equality, models

    import sinkscope

    def without_sinks(module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float,
                      sliding_window: int | None = None, **_: object) -> tuple[Tensor, None]:
        return sinkscope.attention(q, k, v, sm_scale=scaling, bandwidth=sliding_window or 0).transpose(1, 2), None

    models.register()
    transformers.AttentionInterface.register("attention_sink_bf16", models.in_format(without_sinks, torch.bfloat16))
    report = Report()
    equality.run(report, "cpu", True, 300)
    for what in ("logits", "q_proj.weight", "sinks", "all gradients"):
        assert any(sentence.startswith(f"step: {what} of attention_sink in bf16") for sentence in report.failures), what


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    code, text = check(tmp_path / "check.md", "--only", "sweep,nothing")
    assert code == 2 and "nothing" in text and "tests, sweep, step, time" in text


def test_without_a_gpu_or_a_command_it_ends_with_3(tmp_path: Path) -> None:
    def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, ROOT / "tools/gpu_check_python", *arguments], capture_output=True, text=True,
                              env={**os.environ, **environment}, check=False)

    no_gpu = script(CUDA_VISIBLE_DEVICES="")
    assert no_gpu.returncode == 3 and "no GPU" in no_gpu.stderr
    no_command = script("--device", "cpu", "--only", "sweep", SINKSCOPE_EXECUTABLE=str(tmp_path / "absent"))
    assert no_command.returncode == 3 and "SINKSCOPE_EXECUTABLE must be" in no_command.stderr
