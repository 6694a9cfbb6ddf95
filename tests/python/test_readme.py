# SPDX-License-Identifier: Apache-2.0
"""What the READMEs tell a user of Python to type works as typed: their blocks of Python and the commands between."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the READMEs' examples need transformers")

ROOT = Path(__file__).resolve().parents[2]
FIRST_STEP = (ROOT / "README.md").read_text().split("## In Python\n")[1].split("\n## ")[0]
LONG_FORM = (ROOT / "tools/python/README.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^    ((?:python|build/sinkscope) .*)$", re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a README in `language`; in "" those of output."""
    return [body for name, body in BLOCK.findall(text) if name == language]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with build/sinkscope, to type in."""
    named = os.environ.get("SINKSCOPE_EXECUTABLE")
    places = [Path(named)] if named else [ROOT / build / "sinkscope" for build in ("build", "build-cuda")]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        pytest.skip(f"no sinkscope command at {', '.join(map(str, places))}")
    (tmp_path / "build").mkdir()
    (tmp_path / "build/sinkscope").symlink_to(place)
    monkeypatch.delenv("SINKSCOPE_EXECUTABLE", raising=False)
    return tmp_path


def tiny_gpt_oss(folder: Path) -> Path:
    """A checkpoint to stand for openai/gpt-oss-20b."""
    config = transformers.GptOssConfig(
        num_hidden_layers=2, hidden_size=64, intermediate_size=64, num_local_experts=2, num_experts_per_tok=1,
        num_attention_heads=8, num_key_value_heads=2, head_dim=64, sliding_window=32, vocab_size=256, pad_token_id=None)
    torch.manual_seed(0)
    transformers.GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def tiny_qwen3(folder: Path) -> Path:
    """A checkpoint to stand for Qwen/Qwen3-0.6B."""
    config = transformers.Qwen3Config(
        num_hidden_layers=2, hidden_size=64, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=256)
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def typed(line: str, folder: Path) -> str:
    """What a line prints, typed in `folder` with this interpreter as python; 1 is the exit code of what is wrong."""
    line = re.sub(r"(^| )python ", rf"\1{sys.executable} ", line)
    ran = subprocess.run(["bash", "-c", line], check=False, cwd=folder, capture_output=True, text=True, timeout=240)
    assert ran.returncode in (0, 1), f"{line}: {ran.returncode}\n{ran.stderr}"
    assert "Traceback" not in ran.stderr, f"{line}\n{ran.stderr}"
    return ran.stdout


def blurred(text: str) -> str:
    """`text` with # for numbers of more than a digit or two, which differ from one processor to the next."""
    return re.sub(r"\d+\.\d+(e-?\d+)?", "#", text)


def findings(text: str) -> dict[str, list[str]]:
    """The lines of an explanation, by path; of a path in several captures all of them."""
    found: dict[str, list[str]] = {}
    path = ""
    for line in text.splitlines():
        if re.fullmatch(r"  [a-z_0-9.]+", line):
            path = line.strip()
        elif re.match(r"    [a-z_]+: ", line):
            found.setdefault(path, []).append(line.strip())
    return found


def test_the_first_step_works_as_typed_and_prints_what_the_readme_shows(checkout: Path) -> None:
    (script,), (shown,) = blocks(FIRST_STEP, "python"), blocks(FIRST_STEP, "")
    step, compare, *_ = COMMAND.findall(FIRST_STEP)
    (checkout / "first_step.py").write_text(script)
    first = typed(step, checkout)
    assert blurred(first) == blurred("\n".join(shown.splitlines()[:2]) + "\n")
    assert sorted(path.name for path in (checkout / "captures").iterdir()) == [
        "step0_layer0.safetensors", "step0_layer1.safetensors"]
    assert typed(step, checkout) == first  # a second time, too

    printed = typed(compare, checkout)
    assert shown.splitlines()[3:5] == printed.splitlines()[:2]
    assert shown.splitlines()[-1] == printed.splitlines()[-1]
    assert findings(shown)["recorded.attention_sink"][0] == "none: nothing fails"
    assert findings(shown)["flash_attention_2"] == ["sink_ignored: the sink is left out of the softmax"]
    right = [line for line in findings(printed)["recorded.attention_sink"] if line.startswith("none: ")]
    assert right == ["none: nothing fails"] * 2
    mistakes = [line for line in findings(printed)["flash_attention_2"] if line.startswith("sink_ignored: ")]
    assert mistakes == findings(shown)["flash_attention_2"] * 2


def test_the_long_form_works_as_typed(checkout: Path) -> None:
    """Its Python, one block after the other, with tiny checkpoints in place of downloads; then its commands."""
    folder = tiny_gpt_oss(checkout / "tiny")
    script = "\n".join(blocks(LONG_FORM, "python"))
    for name, place in {"openai/gpt-oss-20b": folder, "Qwen/Qwen3-0.6B": tiny_qwen3(checkout / "qwen3")}.items():
        assert script.count(name) == 1
        script = script.replace(name, str(place))
    (checkout / "typed.py").write_text(script)
    printed = typed("python typed.py", checkout)
    assert "step0_layer1.safetensors" in printed and "cpu bf16" in printed

    commands = COMMAND.findall(LONG_FORM)
    answers = {line: typed(line.replace("DIR_OR_CONFIG_JSON", str(folder)), checkout) for line in commands}
    words = {"doctor": "attention_sink gives attention_sink: sinks learn",
             "preflight": "set attn_implementation=attention_sink",
             "compare": "recorded.attention_sink", "explain": "none: nothing fails"}
    for word, expected in words.items():
        (line,) = [line for line in commands if f" {word}" in line]
        assert expected in re.sub(" +", " ", answers[line]), answers[line]
