# SPDX-License-Identifier: Apache-2.0
"""Runs reports/notebooks/gpt_oss_in_transformers.ipynb, and checks what its cells found, printed and drew.

    python transformers_test.py SINKSCOPE

Exits with 77 and the reason where the interpreter lacks what the notebook needs.
"""
from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/python"), str(ROOT / "reports/notebooks")]

from run import ALL_SKIPPED, missing, required  # noqa: E402

NEEDED = ("torch", "transformers", "safetensors", "h5py", "matplotlib", "ipykernel", "nbclient", "nbformat")


def causes(text: str, name: str) -> dict[str, set[str]]:
    """The causes that the notebook printed for an implementation, by layer; roundings left out."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if words[1:2] == [f"recorded.{name}"] and not words[2].startswith("rounding:"):
            found.setdefault(words[0], set()).add(words[2])
    return found


def main() -> int:
    reason = missing(NEEDED)
    if reason:
        print(f"skipped: {reason}")
        return 1 if required() else ALL_SKIPPED
    from run_notebook import run_notebook

    ran = run_notebook("gpt_oss_in_transformers", timeout=240, SINKSCOPE_EXECUTABLE=sys.argv[1])
    text = ran.text
    assert ran.stored_outputs == 0, "the notebook is stored without outputs"

    layers = ("step0_layer0", "step0_layer1")
    assert causes(text, "sinkless") == {layer: {"sink_ignored"} for layer in layers}, text
    assert causes(text, "attention_sink") == {layer: {"none"} for layer in layers}, text
    training = [line for line in text.splitlines() if line.startswith("* ")]
    assert len(training) == 4, training
    for line in training:
        silent = "the sinks do not train" in line
        assert silent == line.startswith("* sinkless, "), line
    assert "sinkless: set attn_implementation=attention_sink" in text, text
    assert "attention_sink: keep attention_sink" in text, text

    first = {words[0]: float(words[2]) for words in map(str.split, text.splitlines()) if words[1:2] == ["loss"]}
    assert first["sinkless"] > first["attention_sink"], first
    still = {words[0]: float(words[-1]) for words in map(str.split, text.splitlines()) if words[1:2] == ["loss"]}
    assert still["sinkless"] == 0 < still["attention_sink"], still

    pages = ran.shown["text/markdown"]
    assert len(pages) == 1 and pages[0].startswith("# flash_attention_2 for ") and "sink_ignored" in pages[0], pages
    pictures = len(ran.shown["image/png"])
    assert pictures == 2, f"{pictures} pictures, wanted 2"
    print("notebook: every cell ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
