# SPDX-License-Identifier: Apache-2.0
"""The pre-training check: the decision of the field from a configuration, at real head counts, with exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="preflight needs transformers")
from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402
from transformers.masking_utils import eager_mask  # noqa: E402

from sinkscope._reduced_model import layer_kinds, read_config, reduced_config  # noqa: E402
from sinkscope.preflight import main, preflight  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
GPT_OSS = {"model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "num_attention_heads": 16,
           "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 128, "vocab_size": 201088}
QWEN3 = {"model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 151936}
MISTRAL = {"model_type": "mistral", "num_hidden_layers": 2, "hidden_size": 4096, "num_attention_heads": 8,
           "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 4096, "vocab_size": 32000}


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    named = os.environ.get("SINKSCOPE_EXECUTABLE")
    places = [Path(named)] if named else [ROOT / build / "sinkscope" for build in ("build", "build-cuda")]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        pytest.skip(f"no sinkscope command at {', '.join(map(str, places))}")
    monkeypatch.setenv("SINKSCOPE_EXECUTABLE", str(place))


def config(folder: Path, fields: dict[str, object]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(fields))
    return path


def test_gpt_oss_may_keep_eager(tmp_path: Path) -> None:
    report = preflight(config(tmp_path, GPT_OSS), "eager", rows=160, record=tmp_path / "record.h5")
    assert report.correct and report.exit_code == 0
    assert [judged.sinks_train for judged in report.judgements] == [True, True]
    assert len(report.costs["eager"]) == 2 and all(cost.kept_bytes > 0 for cost in report.costs["eager"])
    assert "keep eager" in report.advice() and (tmp_path / "record.h5").stat().st_size > 0


def test_gpt_oss_never_wants_flash_attention_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    code = main(["--model", str(config(tmp_path, GPT_OSS)), "--attn", "flash_attention_2", "--rows", "96", "--markdown", str(page)])
    assert code == 1
    text = page.read_text()
    assert text == capsys.readouterr().out[:-1]
    assert "sink_ignored" in text or "dsink_missing" in text
    assert "in place of flash_attention_2" in text and "set attn_implementation=attention_sink, or eager" in text


def test_a_function_that_leaves_the_sinks_out_is_found(tmp_path: Path) -> None:
    """The function itself is run, under its own name: nothing is known of it beforehand."""

    def own(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
            mask: torch.Tensor | None, scaling: float, **_: object) -> tuple[torch.Tensor, None]:
        group = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scaling
        out = (scores if mask is None else scores + mask).softmax(-1) @ value.repeat_interleave(group, 1)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("own_attention", own)
    AttentionMaskInterface.register("own_attention", eager_mask)
    report = preflight(config(tmp_path, GPT_OSS), "own_attention", rows=160)
    assert report.exit_code == 1 and len(report.judgements) == 2
    for judged in report.judgements:
        assert judged.path == "recorded.own_attention" and judged.sinks_train is False
        assert any(mistake.startswith("sink_ignored") for mistake in judged.mistakes), judged.mistakes
        assert judged.worst
    assert {"own_attention", "eager", "attention_sink"} == set(report.costs)


def test_a_standard_model_wants_flash_attention_2_unless_sinks_are_added(tmp_path: Path) -> None:
    path = config(tmp_path, QWEN3)
    plain = preflight(path, "flash_attention_2", rows=96)
    assert plain.exit_code == 0 and plain.advice().startswith("keep flash_attention_2")
    added = preflight(path, "flash_attention_2", rows=96, add_sinks=True)
    assert added.exit_code == 1 and "set attn_implementation=attention_sink" in added.advice()
    assert added.costs.keys() == {"eager", "attention_sink"} and "flash_attention_2: no time" in added.markdown()


@pytest.mark.parametrize(("attention", "mistake"), [("attention_sink", None), ("sdpa", "sink_ignored"), ("eager", "sink_ignored")])
def test_added_sinks_are_really_there(tmp_path: Path, attention: str, mistake: str | None) -> None:
    report = preflight(config(tmp_path, QWEN3), attention, rows=96, add_sinks=True)
    judged = report.judgements[0]
    assert judged.path == f"recorded.{attention}" and judged.sinks_train is (mistake is None)
    assert mistake is None and report.correct or any(text.startswith(str(mistake)) for text in judged.mistakes), judged


def test_a_wide_window_is_tested_as_a_narrow_one_and_told(tmp_path: Path) -> None:
    report = preflight(config(tmp_path, MISTRAL), "sdpa", rows=160)
    assert report.correct and any("4096 is tested as one of 128" in note for note in report.notes)
    assert "w128" in report.geometries[0]


def test_the_reduced_model_keeps_the_attention(tmp_path: Path) -> None:
    real = read_config(config(tmp_path, GPT_OSS))
    small = reduced_config(real)
    assert layer_kinds(real) == {"sliding_attention": 12, "full_attention": 12}
    assert (small.num_attention_heads, small.num_key_value_heads, small.head_dim, small.sliding_window) == (16, 2, 64, 128)
    assert small.num_hidden_layers == 2 and small.vocab_size < 1000 and real.vocab_size == 201088


def test_exit_codes_for_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    path = str(config(tmp_path, QWEN3))
    assert main(["--model", str(tmp_path / "absent")]) == 2
    assert main(["--model", path, "--attn", "no_such_attention"]) == 2
    assert "no_such_attention" in capsys.readouterr().err
    assert main(["--model", path, "--dtype", "int8"]) == 2
    monkeypatch.setenv("SINKSCOPE_EXECUTABLE", str(tmp_path / "absent"))
    assert main(["--model", path, "--attn", "eager", "--rows", "32"]) == 3
