# SPDX-License-Identifier: Apache-2.0
"""Runs one file of the Python package's tests with pytest: `run.py tests/python/test_attention.py`. Exits with 77 and the
reason where the interpreter lacks what all of the file's tests need, otherwise as pytest does. SINKSCOPE_REQUIRE names packages,
with commas, whose absence is an error instead."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable

NEEDED = ("torch", "pytest", "expecttest")
ALL_SKIPPED = 77


def missing(needed: Iterable[str]) -> str:
    """What of `needed` does not import, in a sentence; empty where all does."""
    for name in needed:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            return f"{sys.executable} cannot import {name}: {error}"
    return ""


def required() -> list[str]:
    return [name for name in os.environ.get("SINKSCOPE_REQUIRE", "").split(",") if name]


class Count:
    """How many tests ran, told by pytest."""

    ran = 0

    def pytest_runtest_logreport(self, report: object) -> None:
        self.ran += report.when == "call" and not report.skipped


def main() -> int:
    reason = missing(required())
    if reason:
        print(f"SINKSCOPE_REQUIRE is {os.environ['SINKSCOPE_REQUIRE']}: {reason}")
        return 1
    reason = missing(NEEDED)
    if reason:
        print(f"skipped: {reason}")
        return ALL_SKIPPED
    import pytest

    count = Count()
    code = pytest.main(["-q", "-rs", "--show-capture=no", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[count])
    nothing_ran = code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and count.ran == 0
    return ALL_SKIPPED if nothing_ran else int(code)


if __name__ == "__main__":
    sys.exit(main())
