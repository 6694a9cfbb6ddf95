# SPDX-License-Identifier: Apache-2.0
"""Attention with learnable sinks (GPT-OSS) for torch, transformers and verl."""

from typing import TYPE_CHECKING, Any

from sinkscope._attention import attention
from sinkscope._capture import Capture, capture
from sinkscope._native import backends

if TYPE_CHECKING:
    from sinkscope._add_sinks import add_sinks, load_sinks

__version__ = "0.1.0"
__all__ = ["Capture", "add_sinks", "attention", "backends", "capture", "load_sinks"]


def __getattr__(name: str) -> Any:
    """What needs transformers is imported when it is first asked for."""
    if name not in ("add_sinks", "load_sinks"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sinkscope import _add_sinks

    return getattr(_add_sinks, name)
