# SPDX-License-Identifier: Apache-2.0
"""Stands between transformers' attention modules and the attention function that they look up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Called as visit(function, module, *arguments, **keywords) in place of function(module, *arguments, **keywords).
Visitor = Callable[..., Any]


@contextmanager
def intercepted(visit: Visitor) -> Iterator[None]:
    """Sends every attention call of this process through `visit` while the context is open.

    The modules of transformers ask AttentionInterface.get_interface for their function in every forward, for 'eager'
    too, whose function is the default that they pass. So this reaches all implementations, those registered later
    included, and leaves model, configuration and registry as they are. Compiled graphs do not ask again: a model that
    torch.compile compiled before is not seen. Raises ImportError where transformers is absent or too old.
    """
    try:
        from transformers import AttentionInterface
    except ImportError as error:
        raise ImportError("sinkscope: captures need transformers 5.9 or later: `pip install transformers`") from error
    original = getattr(AttentionInterface, "get_interface", None)
    if original is None:
        import transformers

        raise ImportError("sinkscope: captures need a transformers whose AttentionInterface has get_interface (5.9 or "
                          f"later), found {transformers.__version__}")

    def get_interface(self: Any, *arguments: Any, **keywords: Any) -> Callable[..., Any]:
        function = original(self, *arguments, **keywords)
        return lambda module, *rest, **named: visit(function, module, *rest, **named)

    AttentionInterface.get_interface = get_interface
    try:
        yield
    finally:
        AttentionInterface.get_interface = original
