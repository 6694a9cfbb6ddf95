# SPDX-License-Identifier: Apache-2.0
"""Runs reports/notebooks/spike_lab.ipynb on a fresh record of the smallest scenario, and checks what its cells printed and drew.

    python spike_lab_test.py SINKSCOPE

Skipped (exit code 77) where the lab is not built.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "reports/notebooks"))

from run_notebook import Ran, run_notebook  # noqa: E402


def run(sinkscope: str, exact_every: int) -> Ran:
    """The executed notebook, with counterfactuals every so many steps; an exception in a cell is an exception here."""
    with tempfile.TemporaryDirectory() as folder:
        scenario, record = Path(folder) / "small.toml", Path(folder) / "small.h5"
        text = (ROOT / "datasets/scenarios/small_grpo.toml").read_text()
        scenario.write_text(text.replace("exact_every = 3", f"exact_every = {exact_every}"))
        subprocess.run([sinkscope, "spike", str(scenario), "--quiet", "-o", str(record)], check=True, cwd=ROOT)
        return run_notebook("spike_lab", SINKSCOPE_RUNS=str(record))


def main() -> None:
    if not (Path(sys.argv[1]).parent / "sinkscope_lab.so").exists():
        print("skipped: the lab is not built")
        sys.exit(77)
    ran = run(sys.argv[1], exact_every=3)
    text, pictures = ran.text, len(ran.shown["image/png"])

    assert pictures == 5, f"{pictures} pictures, wanted 5"
    assert "without_sinks                   4 steps through flash_attention_2" in text, text
    healthy = next(line for line in text.splitlines() if line.startswith("eager_fp32"))
    assert all(float(part.split()[-1]) < 0.1 for part in healthy.split("worst head: ")[1].split(", ")), healthy
    directions = [line for line in text.splitlines() if "least cosine" in line]
    assert len(directions) == 2 and float(directions[0].split()[-1]) > 0.999 > float(directions[1].split()[-1]), text
    assert "no spikes in this record" in text, text
    assert not ran.errors, ran.errors
    assert ran.stored_outputs == 0, "the notebook is stored without outputs"

    ran = run(sys.argv[1], exact_every=0)
    assert "no counterfactuals in this record" in ran.text, ran.text
    assert len(ran.shown["image/png"]) == 3, "all pictures but those of counterfactuals"
    print("notebook: every cell ran")


if __name__ == "__main__":
    main()
