# SPDX-License-Identifier: Apache-2.0
"""What attention a model would really get here, and whether its sinks would learn: proved by a training step of a tiny
GPT-OSS, not read off a setting."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass

import torch
from torch import nn

import sinkscope

REQUESTED = ("attention_sink", "eager", "flash_attention_2")
_SIZES = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
          "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 64, "num_local_experts": 2, "num_experts_per_tok": 2,
          "layer_types": ["full_attention"], "pad_token_id": 0}


@dataclass(frozen=True)
class Proof:
    """What came of asking for an implementation."""

    requested: str
    given: str | None  # what the model's config says after it was made; None: it could not be made
    sinks: str  # "learn", "get no gradient", "get zeros", or why there was no step

    @property
    def learns(self) -> bool:
        return self.sinks == "learn"

    def line(self) -> str:
        given = "nothing" if self.given is None else self.given
        changed = "" if self.given in (None, self.requested) else "  (not what was asked for)"
        return f"  {self.requested:20} gives {given}{changed}: sinks {self.sinks}"


def _gradient(model: nn.Module, device: str) -> str:
    torch.manual_seed(0)
    tokens = torch.randint(1, 64, (1, 32), device=device)
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    gradient = model.model.layers[0].self_attn.sinks.grad
    if gradient is None:
        return "get no gradient"
    return "learn" if bool((gradient != 0).any()) else "get zeros"


def prove(requested: str, device: str | None = None) -> Proof:
    """Makes a tiny GPT-OSS in bf16 with `requested` and takes one training step on `device` (None: the GPU where there is one)."""
    import transformers

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = transformers.GptOssConfig(**_SIZES)
    given = None
    try:
        model = transformers.GptOssForCausalLM._from_config(config, attn_implementation=requested, dtype=torch.bfloat16)
        given = model.config._attn_implementation
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        return Proof(requested, given, _gradient(model.to(device).train(), device))
    except Exception as error:  # transformers and kernels raise what they like for what is not there
        reason = str(error).strip().splitlines()
        return Proof(requested, given, f"unknown: no step, {type(error).__name__}: {reason[0][:160] if reason else ''}")


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: 0 attention_sink is there and its sinks learn, 1 not, 3 transformers is missing."""
    parser = argparse.ArgumentParser(prog="sinkscope doctor", description=__doc__)
    parser.add_argument("--attn", action="append", help=f"implementations to ask for (default: {', '.join(REQUESTED)})")
    parser.add_argument("--device", help="where to take the step (default: the GPU where there is one)")
    given = parser.parse_args(arguments)
    print(f"sinkscope {sinkscope.__version__}: {sinkscope.backends()}\ntorch {torch.__version__}")
    try:
        import transformers

        import sinkscope.transformers as registration
    except ImportError as error:
        print(f"transformers: {error}")
        return 3
    logging.getLogger("transformers").setLevel(logging.ERROR)
    there = registration.NAME in transformers.AttentionInterface().valid_keys()
    masked = registration.NAME in transformers.AttentionMaskInterface().valid_keys()
    print(f"transformers {transformers.__version__}: {registration.NAME} is {'' if there and masked else 'not '}registered, "
          f"{'with' if masked else 'without'} its mask")
    print("A GPT-OSS that asks for")
    proofs = [prove(name, given.device) for name in given.attn or REQUESTED]
    for proof in proofs:
        print(proof.line())
    ours = next((proof for proof in proofs if proof.requested == registration.NAME), None) or prove(registration.NAME, given.device)
    return 0 if there and masked and ours.learns and ours.given == registration.NAME else 1
