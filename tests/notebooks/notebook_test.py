# SPDX-License-Identifier: Apache-2.0
"""Runs reports/notebooks/read_a_report.ipynb on a fresh record, and checks what its cells printed and drew.

    python notebook_test.py SINKSCOPE
"""
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "reports/notebooks"))

from run_notebook import Ran, run_notebook  # noqa: E402


def run(sinkscope: str) -> Ran:
    """The executed notebook, on a record of the captures; an exception in a cell is an exception here."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "captures.h5"
        paths = "sink_kernel,recorded.eager,recorded.flash_attention_2"
        captures = sorted(str(p) for p in (ROOT / "datasets/captures").glob("*_layer*.safetensors") if "packed" not in p.name)
        subprocess.run([sinkscope, "compare", *captures, "--quiet", "--paths", paths, "-o", str(record)], check=True, cwd=ROOT)
        return run_notebook("read_a_report", SINKSCOPE_RECORD=str(record))


def main() -> None:
    ran = run(sys.argv[1])
    text, pictures = ran.text, len(ran.shown["image/png"])
    tables = len(ran.shown["text/html"])

    assert pictures == 4, f"{pictures} pictures, wanted 4"
    assert tables == 2, f"{tables} tables, wanted 2"
    assert "calm_layer1     sink_kernel                 dq      passed" in text, text
    assert "   6       0.908                             3.482              3.482" in text, text
    assert not ran.errors, ran.errors
    assert ran.stored_outputs == 0, "the notebook is stored without outputs"
    print("notebook: every cell ran")


if __name__ == "__main__":
    main()
