# SPDX-License-Identifier: Apache-2.0
"""Learnable sinks for models of transformers that have none (Llama, Qwen, Mistral and their like)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

import sinkscope.transformers


def attention_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every self-attention: what projects queries and keys and knows its layer."""
    for name, module in model.named_modules():
        if all(hasattr(module, part) for part in ("q_proj", "k_proj", "layer_idx", "head_dim")):
            yield name, module


def add_sinks(model: nn.Module, *, init: float) -> nn.Module:
    """Gives every attention of `model` a parameter `sinks` [Hq], and the model attention_sink, which reads it.

    init: the logit, natural log, that all sinks start with. -inf leaves the model as it is, bit for bit, and leaves it so: a
    sink without a share gets no gradient. -10 is all but unchanged and trains; 0 is the off-by-one softmax.

    The parameters have the dtype and device of the queries' projection, and are in state_dict(), so that save_pretrained()
    stores them; load_sinks() reads them back. Returns the model. Raises ValueError where it has no attention that can take
    them, or has sinks already.
    """
    if math.isnan(init) or init == math.inf:
        raise ValueError(f"add_sinks: init is {init}; supported are finite numbers and -inf")
    found = list(attention_modules(model))
    if not found:
        raise ValueError(f"add_sinks: {type(model).__name__} has no attention with q_proj, k_proj, layer_idx and head_dim")
    for name, module in found:
        if hasattr(module, "sinks"):
            raise ValueError(f"add_sinks: {name} has sinks already; wanted a model without")
    for _, module in found:
        weight = module.q_proj.weight
        heads = module.q_proj.out_features // module.head_dim
        module.sinks = nn.Parameter(torch.full((heads,), init, dtype=weight.dtype, device=weight.device))
    model.set_attn_implementation(sinkscope.transformers.NAME)
    return model


def load_sinks(model: nn.Module, folder: str | Path) -> nn.Module:
    """Adds the sinks that save_pretrained() wrote to `folder` (its .safetensors files) to a model that was loaded without them.

    Raises ValueError where one is missing or is of another shape.
    """
    stored = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            stored |= {name: tensors.get_tensor(name) for name in tensors.keys() if name.endswith(".sinks")}
    wanted = [f"{name}.sinks" for name, _ in attention_modules(model)]
    missing = [name for name in wanted if name not in stored]
    if missing or not wanted:
        raise ValueError(f"load_sinks: {folder} has sinks for {sorted(stored) or 'nothing'}; "
                         f"wanted {missing or 'a model with attention'}")
    add_sinks(model, init=0.0)
    with torch.no_grad():
        for name, module in attention_modules(model):
            sinks = stored[f"{name}.sinks"]
            if sinks.shape != module.sinks.shape:
                raise ValueError(f"load_sinks: {name}.sinks has shape {tuple(sinks.shape)}, wanted {tuple(module.sinks.shape)}")
            module.sinks.copy_(sinks)
    return model
