# SPDX-License-Identifier: Apache-2.0
"""What gpu_check and gpu_check_python share: Markdown that grows part by part, and how they read a verdict."""
import pathlib
import sys


class Report:
    """Markdown that grows part by part; failures go to stderr at once too."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failures: list[str] = []

    def add(self, *lines: str) -> None:
        self.lines += lines

    def table(self, head: list[str], rows: list[list[str]]) -> None:
        self.add("", "| " + " | ".join(head) + " |", "|" + "---|" * len(head))
        self.add(*("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows), "")

    def failed(self, sentence: str) -> None:
        self.failures.append(sentence)
        print(f"{pathlib.Path(sys.argv[0]).name}: FAILED {sentence}", file=sys.stderr, flush=True)


def is_bad(verdict: dict) -> bool:
    """Of a verdict in the command's JSON. What is zero in truth is `mistrusted`, which is no failure."""
    return verdict["verdict"] not in ("passed", "skipped", "mistrusted")


def reason_of(verdict: dict) -> str:
    return verdict["reason"] or f"{verdict['metric']} {verdict['value']}, limit {verdict['limit']}"
