# SPDX-License-Identifier: Apache-2.0
"""Runs the sinkscope command over captures or problem lines and reads what it says of each path."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# An error that no cause explains is rounding all the same while it is under so many units of the format's rounding.
_ROUNDING_UNITS = 8
_UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-24}


class NoCommand(RuntimeError):
    """The sinkscope command is not there or could not judge; the text says what it said."""


@dataclass
class Judgement:
    """What is wrong with one path on one case; `mistakes` is empty where it is right."""

    case: str
    path: str
    mistakes: list[str] = field(default_factory=list)  # 'cause: what, in which heads'
    roundings: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)  # relative L2 error by tensor, over all heads
    worst: str = ''  # tensor, head and relative L2 error of the head that is farthest off
    sinks_train: bool | None = None  # None: no sinks
    fix: str = ''


def find_command() -> Path:
    """The C++ command: SINKSCOPE_EXECUTABLE, else `sinkscope` on PATH, else build/sinkscope here, which a checkout has.

    Raises NoCommand.
    """
    named = os.environ.get("SINKSCOPE_EXECUTABLE")
    found = Path(named or shutil.which("sinkscope") or "build/sinkscope")
    if not found.is_file():
        raise NoCommand(f"the sinkscope command is not at {named or 'any place of PATH, nor at build/sinkscope'}; build it "
                        "with tools/quickstart and set SINKSCOPE_EXECUTABLE=CHECKOUT/build/sinkscope")
    return found


def _heads(finding: dict[str, Any]) -> str:
    kind = "key heads" if finding["heads_of_keys"] else "heads"
    return f"all {kind}" if finding["all_heads"] else f"{kind} {', '.join(map(str, finding['heads']))}"


def _measure(training: dict[str, Any], judged: Judgement) -> None:
    """Relative L2 errors by tensor and the worst head, of the squared norms that explain gives."""
    sums: dict[str, tuple[float, float]] = {}
    farthest = -1.0
    for head in training["heads"]:
        error, ref = head["norm2"]["error"], head["norm2"]["ref"]
        so_far = sums.get(head["tensor"], (0.0, 0.0))
        sums[head["tensor"]] = (so_far[0] + error, so_far[1] + ref)
        relative = math.sqrt(error / ref) if ref > 0 else (math.inf if error else 0.0)
        if head["tensor"] in ("out", "dq", "dk", "dv") and not relative <= farthest:
            farthest = relative
            judged.worst = f"{head['tensor']} of head {head['head']}, off by {relative:.2g} of its size"
    judged.errors = {name: math.sqrt(error / ref) if ref > 0 else 0.0 for name, (error, ref) in sums.items()}


def _read(case: str, path: str, answer: dict[str, Any], unit: float, has_sinks: bool) -> Judgement:
    judged = Judgement(case, path)
    mine = [entry for entry in answer["training"] if entry["problem"] == case and entry["path"] == path]
    if not mine:
        raise NoCommand(f"the command says nothing of {path} on {case}")
    _measure(mine[0], judged)
    judged.sinks_train = bool(mine[0]["sinks_train"]) if has_sinks else None
    small = all(judged.errors.get(name, 0.0) <= _ROUNDING_UNITS * unit for name in ("out", "dq", "dk", "dv"))
    for finding in answer["findings"]:
        if finding["problem"] != case or finding["path"] != path or finding["cause"] == "none":
            continue
        text = f"{finding['cause']}: {finding['sentence']}, {' '.join(finding['tensors'])} of {_heads(finding)}"
        if finding["cause"].startswith("rounding:") or finding["cause"] == "unexplained" and small:
            judged.roundings.append(text)
        else:
            judged.mistakes.append(text)
            judged.fix = judged.fix or finding["fix"]
    if judged.sinks_train is False and not any("dsink" in mistake for mistake in judged.mistakes):
        judged.mistakes.append("dsink_missing: the sink gets no gradient, dsinks of all heads")
    return judged


def judge(inputs: Sequence[str | Path], paths: Sequence[str], *, dtype: str, has_sinks: bool,
          record: Path | None = None) -> list[Judgement]:
    """Compares and explains `paths` on captures or problem lines, in their order; `record` is an HDF5 file to write.

    `dtype` is bf16, fp16 or fp32. Raises NoCommand where the command cannot be run, fails, or cannot run a path.
    """
    with tempfile.TemporaryDirectory(prefix="sinkscope") as folder:
        verdicts = Path(folder) / "verdicts.json"
        line = [str(find_command()), "compare", *map(str, inputs), "--paths", ",".join(paths), "--explain", "--quiet",
                "--json", str(verdicts)]
        line += ["-o", str(record), "--overwrite"] if record else []
        run = subprocess.run(line, capture_output=True, text=True, check=False)
        if not verdicts.is_file():
            raise NoCommand(f"`{' '.join(line)}` ended with {run.returncode}: {(run.stderr or run.stdout).strip()[-600:]}")
        answer = json.loads(verdicts.read_text())
    judged = []
    for case in answer["cases"]:
        for ran in case["paths"]:
            reasons = {verdict["reason"] for verdict in ran["verdicts"] if verdict["verdict"] in ("error", "skipped")}
            if reasons:
                raise NoCommand(f"{ran['path']} did not run on {case['name']}: {'; '.join(sorted(reasons))}")
            judged.append(_read(case["name"], ran["path"], answer, _UNIT[dtype], has_sinks))
    return judged
