# SPDX-License-Identifier: Apache-2.0
"""Runs a notebook of this folder, for what draws its pictures and for its tests."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent


@dataclass
class Ran:
    """What the cells printed and drew."""

    text: str
    errors: str  # what they wrote to stderr
    shown: defaultdict[str, list[str]]  # what they displayed, by MIME type: pictures are "image/png", in base64
    stored_outputs: int  # cells that had outputs before


def run_notebook(name: str, timeout: int = 120, **environment: str) -> Ran:
    """NAME.ipynb, run from the root of the checkout with these variables in its environment and at most `timeout` seconds for a
    cell. An exception in a cell is an exception here."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored_outputs = sum(bool(cell.outputs) for cell in cells)
    client = NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(FOLDER.parents[1])}})
    client.execute(env={**os.environ, **environment})
    ran = Ran("", "", defaultdict(list), stored_outputs)
    for output in (output for cell in cells for output in cell.outputs):
        if output.output_type == "stream" and output.name == "stderr":
            ran.errors += output.text
        else:
            ran.text += output.get("text", "")
        for kind, data in output.get("data", {}).items():
            ran.shown[kind].append(data)
    return ran
