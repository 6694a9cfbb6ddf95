# SPDX-License-Identifier: Apache-2.0
"""verl's ways in: the plugin, and the refusal of sequence parallelism. With the real verl where it is installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from run import required
from torch import nn

transformers = pytest.importorskip("transformers")

import sinkscope.transformers  # noqa: E402

REGISTERED = "print('attention_sink' in __import__('transformers').AttentionInterface().valid_keys())"


def output_of(code: str, **environment: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True)
    return ran.stdout.strip().splitlines()[-1]


def test_the_plugin_registers() -> None:
    assert output_of(f"import sinkscope\n{REGISTERED}") == "False"
    assert output_of(f"import importlib; importlib.import_module('sinkscope.verl')\n{REGISTERED}") == "True"
    project = (Path(__file__).parents[2] / "tools/python/pyproject.toml").read_text()
    assert '[project.entry-points."verl.plugins"]\nsinkscope = "sinkscope.verl"' in project


def test_slices_of_a_sequence_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ulysses = types.ModuleType("verl.utils.ulysses")
    size = 1
    ulysses.get_ulysses_sequence_parallel_world_size = lambda: size
    monkeypatch.setitem(sys.modules, "verl.utils.ulysses", ulysses)
    query = torch.randn(1, 2, 4, 16)
    out, _ = sinkscope.transformers.attention_sink(nn.Module(), query, query, query)
    assert out.shape == (1, 4, 2, 16)
    size = 2
    with pytest.raises(ValueError, match="ulysses_sequence_parallel_size is 2"):
        sinkscope.transformers.attention_sink(nn.Module(), query, query, query)


def test_verl_finds_the_plugin() -> None:
    pytest.importorskip("verl")
    if "sinkscope" not in {entry.name for entry in importlib.metadata.entry_points(group="verl.plugins")}:
        absent = "the package is not installed here, so that it has no entry point"
        pytest.fail(absent) if "verl" in required() else pytest.skip(absent)
    assert output_of(f"import verl\n{REGISTERED}", VERL_USE_EXTERNAL_PLUGINS="auto") == "True"


def step_in_verl(*overrides: str) -> dict[str, object]:
    pytest.importorskip("verl")
    script = Path(__file__).with_name("verl_step.py")
    ran = subprocess.run([sys.executable, str(script), *overrides], env=os.environ | {"VERL_USE_EXTERNAL_PLUGINS": "none"},
                         capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])


def test_verls_configuration_and_loading_give_the_implementation() -> None:
    found = step_in_verl("actor_rollout_ref.model.external_lib=sinkscope.verl",
                         "+actor_rollout_ref.model.override_config.attn_implementation=attention_sink")
    assert found["implementation"] == "attention_sink"
    assert found["leak"] < 1e-5
    assert found["smallest sink gradient"] > 0


def test_without_the_override_verl_gives_another() -> None:
    found = step_in_verl("+actor_rollout_ref.model.override_config.attn_implementation=eager")
    assert found["implementation"] == "eager"
    assert found["leak"] > 1e-3  # the mask that 5.9.0 builds without position_ids lets documents see each other
