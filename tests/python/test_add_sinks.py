# SPDX-License-Identifier: Apache-2.0
"""Sinks in models that have none: unchanged at -inf, trained, saved and loaded; and the start-up hook."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

import sinkscope.transformers  # noqa: E402
from sinkscope import add_sinks, load_sinks  # noqa: E402

SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=97, max_position_embeddings=128)
KINDS = {"llama": ("LlamaConfig", "LlamaForCausalLM"), "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
         "mistral": ("MistralConfig", "MistralForCausalLM")}


def make(kind: str) -> nn.Module:
    config_name, model_name = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**SIZES, head_dim=16)
    return getattr(transformers, model_name)._from_config(config, attn_implementation=sinkscope.transformers.NAME).float().eval()


def tokens() -> Tensor:
    return torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module) -> Tensor:
    return model(tokens(), labels=tokens(), use_cache=False).loss


@pytest.mark.parametrize("kind", KINDS)
def test_minus_infinity_changes_nothing(kind: str) -> None:
    model = make(kind)
    with torch.no_grad():
        before = model(tokens(), use_cache=False).logits
        after = add_sinks(model, init=-math.inf)(tokens(), use_cache=False).logits
        assert torch.equal(before, after)
        model.model.layers[0].self_attn.sinks.fill_(1.0)
        assert not torch.equal(model(tokens(), use_cache=False).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_sinks_train_and_come_back(kind: str, tmp_path: Path) -> None:
    model = add_sinks(make(kind), init=-2.0)
    names = [name for name, _ in model.named_parameters() if name.endswith("sinks")]
    assert len(names) == SIZES["num_hidden_layers"]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    first = loss_of(model)
    first.backward()
    assert all(model.get_parameter(name).grad.abs().min() > 0 for name in names)
    optimizer.step()
    with torch.no_grad():
        trained = loss_of(model)
        assert trained < first
        assert all((model.get_parameter(name) != -2.0).all() for name in names)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, attn_implementation=sinkscope.transformers.NAME).eval()
        assert not any(name.endswith("sinks") for name, _ in again.named_parameters())
        assert torch.equal(loss_of(load_sinks(again, tmp_path)), trained)


def test_errors_say_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="init is nan"):
        add_sinks(make("llama"), init=math.nan)
    with pytest.raises(ValueError, match="sinks already"):
        add_sinks(add_sinks(make("llama"), init=0.0), init=0.0)
    with pytest.raises(ValueError, match="Linear has no attention"):
        add_sinks(nn.Linear(2, 2), init=0.0)
    with pytest.raises(ValueError, match="has sinks for nothing"):
        load_sinks(make("llama"), tmp_path)


@pytest.mark.parametrize(("value", "said"), [("1", "True"), ("0", "False"), ("", "False"), ("yes", "supported are 1, 0")])
def test_the_hook_registers_where_it_is_asked_to(value: str, said: str) -> None:
    code = ("import sinkscope.startup_hook, transformers\n"
            "print('attention_sink' in transformers.AttentionInterface().valid_keys())")
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | {"USE_ATTENTION_SINK": value}, capture_output=True,
                         text=True, check=False)
    assert said in ran.stdout + ran.stderr, ran
