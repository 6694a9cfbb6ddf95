# SPDX-License-Identifier: Apache-2.0
"""Runs reports/notebooks/read_a_report.ipynb on a fresh record, and checks what its cells printed and drew.

    python notebook_test.py SINKSCOPE
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "reports/notebooks/read_a_report.ipynb"


def run(sinkscope: str) -> nbformat.NotebookNode:
    """The executed notebook, on a record of the captures; an exception in a cell is an exception here."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "captures.h5"
        paths = "sink_kernel,recorded.eager,recorded.flash_attention_2"
        captures = sorted(str(p) for p in (ROOT / "datasets/captures").glob("*_layer*.safetensors") if "packed" not in p.name)
        subprocess.run([sinkscope, "compare", *captures, "--quiet", "--paths", paths, "-o", str(record)], check=True, cwd=ROOT)
        os.environ["SINKSCOPE_RECORD"] = str(record)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
        return notebook


def main() -> None:
    notebook = run(sys.argv[1])
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    tables = sum("text/html" in output.get("data", {}) for output in outputs)

    assert pictures == 4, f"{pictures} pictures, wanted 4"
    assert tables == 2, f"{tables} tables, wanted 2"
    assert "calm_layer1     sink_kernel                 dq      passed" in text, text
    assert "   6       0.908                             3.482              3.482" in text, text
    errors = [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not errors, errors

    stored = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in stored.cells), "the notebook is stored without outputs"
    print("notebook: every cell ran")


if __name__ == "__main__":
    main()
