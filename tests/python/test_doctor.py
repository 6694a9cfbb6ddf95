# SPDX-License-Identifier: Apache-2.0
"""What the doctor proves: sinks that learn, sinks that get nothing, and names that nobody knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

import sinkscope.transformers  # noqa: E402
from sinkscope import doctor  # noqa: E402
from sinkscope.__main__ import main  # noqa: E402


def without_sinks(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
                  **_: object) -> tuple[Tensor, None]:
    return sinkscope.attention(query, key, value).transpose(1, 2), None


def test_sinks_learn_under_attention_sink_and_eager() -> None:
    for name in ("attention_sink", "eager"):
        proof = doctor.prove(name, "cpu")
        assert (proof.given, proof.sinks) == (name, "learn"), proof


def test_a_function_that_leaves_the_sink_out_is_found() -> None:
    transformers.AttentionInterface.register("left_out", without_sinks)
    proof = doctor.prove("left_out", "cpu")
    assert proof.given == "left_out"
    assert proof.sinks == "get no gradient"
    assert not proof.learns


def test_an_unknown_name_is_no_proof() -> None:
    proof = doctor.prove("atention_sink", "cpu")
    assert proof.given is None
    assert "no step" in proof.sinks


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--attn", "attention_sink", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "attention_sink is registered, with its mask" in said
    assert "gives attention_sink: sinks learn" in said
    assert torch.__version__ in said
    assert main(["doctr"]) == 2
