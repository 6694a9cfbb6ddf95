# SPDX-License-Identifier: Apache-2.0
"""A model of the same family with the attention of the real one and next to nothing else, for the pre-training check."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

TESTED_WINDOW = 128
_HIDDEN = 64
# What does not touch the attention, made small where a configuration has it.
_SMALL = {"hidden_size": _HIDDEN, "intermediate_size": 64, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
          "vocab_size": 128, "num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "pad_token_id": None,
          "attention_dropout": 0.0, "use_cache": False, "initializer_range": _HIDDEN**-0.5}


def read_config(model: str | Path) -> Any:
    """The text configuration of a model folder or of a config.json. Raises ValueError, OSError."""
    from transformers import AutoConfig

    place = Path(model)
    if place.is_file():
        fields = json.loads(place.read_text())
        kind = fields.pop("model_type", None)
        if kind is None:
            raise ValueError(f"model={str(place)!r} has no model_type, wanted a config.json of transformers")
        config = AutoConfig.for_model(kind, **fields)
    elif (place / "config.json").is_file():
        config = AutoConfig.from_pretrained(place)
    else:
        raise ValueError(f"model={str(place)!r} is no folder with a config.json and no such file")
    return config.get_text_config()


def layer_kinds(config: Any) -> dict[str, int]:
    """How many layers of each kind ('full_attention', 'sliding_attention', ...) there are; of one kind where none is told."""
    kinds: dict[str, int] = {}
    for kind in getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers:
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def reduced_config(config: Any) -> Any:
    """One layer of each kind at the real head counts and head size; a window over 128 becomes 128, as time allows."""
    small = copy.deepcopy(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = list(layer_kinds(config))
    for name, value in {**_SMALL, "head_dim": head_dim, "num_hidden_layers": len(kinds)}.items():
        if name == "head_dim" or hasattr(small, name):
            setattr(small, name, value)
    if getattr(config, "layer_types", None):
        small.layer_types = kinds
    if (getattr(config, "sliding_window", None) or 0) > TESTED_WINDOW:
        small.sliding_window = TESTED_WINDOW
    return small


def build(config: Any, attention: str, dtype: torch.dtype, device: str, add_sinks: bool = False) -> torch.nn.Module:
    """The reduced model with random weights, its sinks, its own or added, spread from weak to strong. Raises what
    transformers raises."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(reduced_config(config), attn_implementation=attention, dtype=dtype)
    if add_sinks:
        import sinkscope

        sinkscope.add_sinks(model, init=0.0).set_attn_implementation(attention)  # which may well not look at them
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.copy_(torch.linspace(-2, 5, parameter.numel()))
    return model.to(device).train()


def has_sinks(model: torch.nn.Module) -> bool:
    return any(name.endswith("sinks") for name, _ in model.named_parameters())


def train_step(model: torch.nn.Module, rows: int) -> None:
    """Forward and backward of one row of random tokens."""
    device = next(model.parameters()).device
    ids = torch.randint(0, 128, (1, rows), generator=torch.Generator().manual_seed(1)).to(device)
    model(input_ids=ids, labels=ids).loss.backward()
