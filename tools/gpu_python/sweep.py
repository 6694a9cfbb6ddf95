# SPDX-License-Identifier: Apache-2.0
"""The operator's sweep against the command's gate: drawn problems become captures, the operator adds what it computes, and
`sinkscope compare` judges that as it judges a path of its own."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import torch
from gpu_report import Report, is_bad, reason_of
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import sinkscope

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NAME = "operator"  # its outputs are the path recorded.operator


def drawn(count: int, seed: int) -> list[str]:
    """Problem lines that the CUDA backend takes."""
    lines = subprocess.run([sys.executable, ROOT / "tools/draw_problems", str(count), "--seed", str(seed), "--dims", "64,128",
                            "--formats", "bf16,fp16"], capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if line and not line.startswith("#")]


def attention_of(inputs: dict[str, Tensor], meta: dict[str, str]) -> dict[str, Tensor]:
    """Everything that the operator gives for a capture's inputs: out, lse, and gradients where there is a dout."""
    if "sinks" in inputs:  # their gradient comes in their format, and the gate knows none but fp32's rounding of it
        inputs["sinks"] = inputs["sinks"].float()
    leaves = {name: inputs[name].requires_grad_("dout" in inputs) for name in ("q", "k", "v", "sinks") if name in inputs}
    offsets = inputs.get("cu_seqlens")
    out, lse = sinkscope.attention(*(leaves[name] for name in "qkv"), leaves.get("sinks"), causal=meta["causal"] == "1",
                                   sm_scale=float(meta["scale"]), bandwidth=int(meta["window"]), layout=meta["layout"],
                                   cu_seqlens_q=offsets, cu_seqlens_k=inputs.get("cu_seqlens_k", offsets), return_lse=True)
    found = {"out": out, "lse": lse}
    if "dout" in inputs:
        gradients = [inputs[name] for name in ("dout", "dlse") if name in inputs]
        torch.autograd.backward([out, lse][:len(gradients)], gradients)
        found |= {"dsinks" if name == "sinks" else f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {name: tensor.detach() for name, tensor in found.items()}


def _add_operator(file: pathlib.Path, device: str) -> bool:
    """Computes and stores; are two runs the same bits?"""
    with safe_open(file, "pt") as capture:
        meta = capture.metadata()
        stored = {name: capture.get_tensor(name) for name in capture.keys()}
    runs = [attention_of({name: tensor.to(device, copy=True) for name, tensor in stored.items()}, meta) for _ in range(2)]
    same = all(torch.equal(runs[0][name].view(torch.uint8), runs[1][name].view(torch.uint8)) for name in runs[0])
    stored |= {f"{NAME}.{name}": tensor.cpu().contiguous() for name, tensor in runs[0].items()}
    save_file(stored, file, metadata=meta)
    return same


def _command(*arguments: str | os.PathLike) -> subprocess.CompletedProcess:
    return subprocess.run([os.environ["SINKSCOPE_EXECUTABLE"], *map(str, arguments)], capture_output=True, text=True, check=False)


def _generate(line: str, file: pathlib.Path) -> None:
    ran = _command("generate", line, "-o", file, "--overwrite")
    if ran.returncode != 0:
        raise RuntimeError(f"sinkscope generate `{line}` ended with {ran.returncode}: {ran.stderr.strip()}")


def _judged(files: list[pathlib.Path], verdicts: pathlib.Path, threads: int) -> list[dict]:
    ran = _command("compare", *files, "--paths", f"recorded.{NAME}", "--quiet", "--json", verdicts, "--threads", threads)
    if not verdicts.is_file():
        raise RuntimeError(f"sinkscope compare ended with {ran.returncode}: {ran.stderr.strip() or ran.stdout[-2000:]}")
    return json.loads(verdicts.read_text())["cases"]


def run(report: Report, folder: pathlib.Path, device: str, count: int) -> None:
    """Adds the section to the report; what fails goes among its failures."""
    lines = drawn(count, seed=11)
    files = [folder / f"p{i:04}.safetensors" for i in range(len(lines))]
    jobs = max(1, (os.cpu_count() or 2) // 2)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(_generate, lines, files))
    for line, file in zip(lines, files):
        if not _add_operator(file, device):
            report.failed(f"sweep: two runs differ in `{line}`")
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        parts = [pool.submit(_judged, files[i::jobs], folder / f"verdicts{i}.json", 2) for i in range(min(jobs, len(files)))]
        cases = {case["name"]: case for part in parts for case in part.result()}
    _tell(report, lines, files, cases)


def _tell(report: Report, lines: list[str], files: list[pathlib.Path], cases: dict[str, dict]) -> None:
    counts: dict[str, dict[str, int]] = {}
    nearest: dict[str, tuple[float, str]] = {}  # of each tensor: its worst statistic over the limit
    for line, file in zip(lines, files):
        for verdict in cases[file.stem]["paths"][0]["verdicts"]:
            of = counts.setdefault(verdict["tensor"], {})
            of[verdict["verdict"]] = of.get(verdict["verdict"], 0) + 1
            if is_bad(verdict):
                report.failed(f"sweep: {verdict['tensor']}: {reason_of(verdict)} in `{line}`")
            elif verdict["verdict"] == "passed" and verdict["value"] is not None and verdict["limit"]:
                share = float(verdict["value"]) / float(verdict["limit"])
                nearest[verdict["tensor"]] = max(nearest.get(verdict["tensor"], (0.0, "")), (share, verdict["metric"]))
    report.add("", "## Operator sweep", "",
               f"{len(lines)} problems of `tools/draw_problems {len(lines)} --seed 11 --dims 64,128 --formats bf16,fp16`: "
               "`sinkscope.attention` runs each twice, "
               "to the same bits, with sinks as fp32; the default gate judges what came out. What is zero in truth is "
               "`mistrusted`: it cannot show much.", "")
    report.table(["tensor", "verdicts", "nearest to a limit"],
                 [[tensor, ", ".join(f"{n} {name}" for name, n in sorted(of.items())),
                   f"{nearest[tensor][1]} at {100 * nearest[tensor][0]:.0f} %" if tensor in nearest else ""]
                  for tensor, of in counts.items()])
