# SPDX-License-Identifier: Apache-2.0
"""Writes the pictures of reports/notebooks/spike_lab.ipynb for a record, as STEM_NAME.png:

.venv/bin/python reports/spikes/draw.py grpo.h5 reports/spikes
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("curves", "rollouts", "heads", "sinks")


def main() -> None:
    record, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    os.environ["SINKSCOPE_RUNS"] = str(record)
    notebook = nbformat.read(ROOT / "reports/notebooks/spike_lab.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    for name, picture in zip(NAMES, pictures, strict=True):
        (folder / f"{record.stem}_{name}.png").write_bytes(base64.b64decode(picture))
    print("".join(output.get("text", "") for output in outputs), end="")


if __name__ == "__main__":
    main()
