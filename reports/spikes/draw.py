# SPDX-License-Identifier: Apache-2.0
"""Writes the pictures of reports/notebooks/spike_lab.ipynb for a record, as STEM_NAME.png:

.venv/bin/python reports/spikes/draw.py grpo.h5 reports/spikes
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))

from run_notebook import run_notebook  # noqa: E402

NAMES = ("curves", "rollouts", "direction", "heads", "sinks", "spikes")  # the last where there are any


def main() -> None:
    record, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    ran = run_notebook("spike_lab", timeout=300, SINKSCOPE_RUNS=str(record))
    pictures = ran.shown["image/png"]
    assert len(pictures) in (len(NAMES) - 1, len(NAMES)), f"{len(pictures)} pictures, wanted those of a record with counterfactuals"
    for name, picture in zip(NAMES, pictures):
        (folder / f"{record.stem}_{name}.png").write_bytes(base64.b64decode(picture))
    print(ran.text, end="")


if __name__ == "__main__":
    main()
