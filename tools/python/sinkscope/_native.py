# SPDX-License-Identifier: Apache-2.0
"""Loads the native operators (`_C.so`) into torch."""

from __future__ import annotations

import os
from pathlib import Path

import torch

ENVIRONMENT = "SINKSCOPE_EXTENSION"


def _is_older(version: str, wanted: tuple[int, int]) -> bool:
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) < wanted


def _candidates() -> list[Path]:
    """Where `_C.so` may lie: what SINKSCOPE_EXTENSION names (a build that is not installed), else the package."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return [Path(named)]
    import sinkscope

    return [Path(folder) / "_C.so" for folder in sinkscope.__path__]


def load() -> Path:
    """Registers torch.ops.sinkscope and returns the file that it comes from.

    Raises ImportError where torch is older than 2.11, or where there is no file or it does not load.
    """
    if _is_older(torch.__version__, (2, 11)):
        raise ImportError(f"sinkscope needs torch 2.11 or later, found {torch.__version__}")
    candidates = _candidates()
    for path in candidates:
        if path.is_file():
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                raise ImportError(f"sinkscope: {path} does not load: {error}") from error
            return path
    looked = ", ".join(str(path) for path in candidates)
    raise ImportError(f"sinkscope: its native part is not at {looked}; install it with `pip install ./tools/python`, "
                      f"or set {ENVIRONMENT} to the python/_C.so of a build with -DSINKSCOPE_PYTHON=ON")


PATH = load()


def backends() -> str:
    """What the kernel runs on, e.g. 'cpu bf16 amx, fp16 avx512, fp32 avx512; cuda 13.0' ('cuda none': not built)."""
    return str(torch.ops.sinkscope.backends())
