# SPDX-License-Identifier: Apache-2.0
"""Attention with learnable sinks (GPT-OSS) for torch, transformers and verl."""

from sinkscope._attention import attention
from sinkscope._capture import Capture, capture
from sinkscope._native import backends

__version__ = "0.1.0"
__all__ = ["Capture", "attention", "backends", "capture"]
