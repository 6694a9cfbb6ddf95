# SPDX-License-Identifier: Apache-2.0
"""Runs reports/notebooks/explain_a_failure.ipynb on a fresh record, and checks what its cells printed and drew.

    python explain_test.py SINKSCOPE
"""
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "reports/notebooks"))

from run_notebook import Ran, run_notebook  # noqa: E402


def run(sinkscope: str) -> Ran:
    """The executed notebook, on a record of one capture; an exception in a cell is an exception here."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "explained.h5"
        paths = "recorded.flash_attention_2,recorded.eager,fault:dlse_dropped:sink_kernel,sink_kernel"
        capture = str(ROOT / "datasets/captures/calm_layer1.safetensors")
        subprocess.run([sinkscope, "explain", capture, "--quiet", "--paths", paths, "-o", str(record)], check=True, cwd=ROOT)
        return run_notebook("explain_a_failure", SINKSCOPE_EXPLAINED=str(record))


def main() -> None:
    ran = run(sys.argv[1])
    text, pictures = ran.text, len(ran.shown["image/png"])

    assert pictures == 2, f"{pictures} pictures, wanted 2"
    rows = [line for line in text.splitlines() if line.startswith(("recorded.", "fault:", "sink_kernel"))]
    lines = {line.split()[0]: line for line in reversed(rows)}  # the first of each path
    wanted = {"recorded.flash_attention_2": ("sink_ignored", "out lse dq dk dv"),
              "recorded.eager": ("rounding:softmax_bf16", "out dq dk dv"),
              "fault:dlse_dropped:sink_kernel": ("dlse_dropped", "dq dk"), "sink_kernel": ("none", "")}
    for path, (cause, tensors) in wanted.items():
        assert f" {cause} " in lines[path] and lines[path].rstrip().endswith(tensors), lines[path]
    assert any(row.split()[:2] == ["sink_kernel", "rounding:delta"] for row in rows), text
    assert "largest difference: 0." in text, text
    training = {line.split()[1].rstrip(":"): line for line in text.splitlines() if line.startswith("* ")}
    said = {"recorded.flash_attention_2": "25 % larger than that of exact attention", "recorded.eager": "to within rounding",
            "fault:dlse_dropped:sink_kernel": "smaller than that of exact attention", "sink_kernel": "those of exact attention"}
    for path, words in said.items():
        assert words in training[path], training[path]
    gains = next(line for line in text.splitlines() if line.startswith("largest difference of gains: "))
    assert float(gains.split()[-1]) < 4e-3, gains
    assert not ran.errors, ran.errors
    assert ran.stored_outputs == 0, "the notebook is stored without outputs"
    print("notebook: every cell ran")


if __name__ == "__main__":
    main()
