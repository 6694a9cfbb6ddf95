# SPDX-License-Identifier: Apache-2.0
"""Runs reports/notebooks/spike_lab.ipynb on a fresh record of the smallest scenario, and checks what its cells printed and drew.

    python spike_lab_test.py SINKSCOPE

Skipped (exit code 77) where the lab is not built.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "reports/notebooks/spike_lab.ipynb"


def run(sinkscope: str) -> nbformat.NotebookNode:
    """The executed notebook; an exception in a cell is an exception here."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "grpo.h5"
        subprocess.run([sinkscope, "spike", "small_grpo", "--quiet", "-o", str(record)], check=True, cwd=ROOT)
        os.environ["SINKSCOPE_RUNS"] = str(record)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
        return notebook


def main() -> None:
    if not (Path(sys.argv[1]).parent / "sinkscope_lab.so").exists():
        print("skipped: the lab is not built")
        sys.exit(77)
    notebook = run(sys.argv[1])
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)

    assert pictures == 4, f"{pictures} pictures, wanted 4"
    assert "without_sinks                   4 steps through flash_attention_2" in text, text
    healthy = next(line for line in text.splitlines() if line.startswith("eager_fp32"))
    assert all(float(part.split()[-1]) < 0.1 for part in healthy.split("worst head: ")[1].split(", ")), healthy
    assert "no spikes in this record" in text, text
    errors = [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not errors, errors

    stored = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in stored.cells), "the notebook is stored without outputs"
    print("notebook: every cell ran")


if __name__ == "__main__":
    main()
