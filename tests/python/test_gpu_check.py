# SPDX-License-Identifier: Apache-2.0
"""tools/gpu_check_python at small sizes on the CPU: its parts run, and what is wrong is found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="tools/gpu_check_python needs transformers")
pytest.importorskip("safetensors", reason="tools/gpu_check_python needs safetensors")

ROOT = Path(__file__).resolve().parents[2]
needs_command = pytest.mark.skipif(not Path(os.environ.get("SINKSCOPE_EXECUTABLE", "")).is_file(),
                                   reason="needs the sinkscope command (SINKSCOPE_EXECUTABLE)")


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

    class Report:
        failures: list[str] = []

        def add(self, *lines: str) -> None: ...

        def table(self, head: list[str], rows: list[list[str]]) -> None: ...

        def failed(self, sentence: str) -> None:
            self.failures.append(sentence)

    right = sinkscope.attention
    monkeypatch.setattr(sinkscope, "attention", lambda q, k, v, sinks, **rest: right(
        q, k, v, None if sinks is None else sinks * 0 - 3, **rest))
    sweep.run(Report(), tmp_path, "cpu", 8)
    assert any(sentence.startswith("sweep: out: z_") for sentence in Report.failures), Report.failures


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    code, text = check(tmp_path / "check.md", "--only", "sweep,nothing")
    assert code == 2 and "nothing" in text and "tests, sweep, step, time" in text
