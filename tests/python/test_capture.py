# SPDX-License-Identifier: Apache-2.0
"""sinkscope.capture: training is the same bit for bit, files hold what the layer computed, and the command judges them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="captures need transformers")
from safetensors import safe_open  # noqa: E402
from transformers import AttentionInterface, AttentionMaskInterface, GptOssConfig, LlamaConfig  # noqa: E402
from transformers.masking_utils import eager_mask  # noqa: E402

import sinkscope  # noqa: E402
from sinkscope._judge import Judgement, judge  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def command() -> Path:
    """The sinkscope command to judge captures with; skips where none is built."""
    named = os.environ.get("SINKSCOPE_EXECUTABLE")
    places = [Path(named)] if named else [ROOT / build / "sinkscope" for build in ("build", "build-cuda")]
    for place in places:
        if place.is_file():
            return place
    pytest.skip(f"no sinkscope command at {', '.join(map(str, places))}")


def without_sinks(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
                  scaling: float, dropout: float = 0.0, **_: object) -> tuple[Tensor, None]:
    """Attention that leaves the sink out, as flash_attention_2 does."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query.float() @ key.float().transpose(2, 3)) * scaling
    if mask is not None:
        scores = scores + mask.float()
    return (scores.softmax(-1) @ value.float()).to(query.dtype).transpose(1, 2).contiguous(), None


def with_the_kernel(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float,
                    sliding_window: int | None = None, s_aux: Tensor | None = None, **_: object) -> tuple[Tensor, None]:
    """The package's operator on rows without padding."""
    out = sinkscope.attention(query, key, value, s_aux, sm_scale=scaling, bandwidth=sliding_window or 0)
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture(autouse=True)
def registered() -> None:
    AttentionInterface.register("with_the_kernel", with_the_kernel)
    AttentionMaskInterface.register("with_the_kernel", eager_mask)
    AttentionInterface.register("without_sinks", without_sinks)
    AttentionMaskInterface.register("without_sinks", eager_mask)


def gpt_oss(attention: str = "eager", dtype: torch.dtype = torch.bfloat16, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = GptOssConfig(**{**dict(
        num_hidden_layers=2, hidden_size=64, intermediate_size=64, num_local_experts=2, num_experts_per_tok=1, vocab_size=97,
        head_dim=64, num_attention_heads=8, num_key_value_heads=2, sliding_window=16, initializer_range=0.12,
        layer_types=["sliding_attention", "full_attention"], attention_dropout=0.0, use_cache=False), **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).train()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.copy_(torch.linspace(-1, 4, 8))
    return model


def batch(b: int = 2, s: int = 48) -> dict[str, Tensor]:
    ids = torch.randint(0, 97, (b, s), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def train(model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


@pytest.mark.parametrize("attention", ["eager", "without_sinks", "with_the_kernel"])
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_training_is_the_same_bit_for_bit(tmp_path: Path, attention: str, checkpointing: bool | None) -> None:
    model = gpt_oss(attention)
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    inputs = batch()
    loss, gradients = train(model, inputs)
    with sinkscope.capture(model, tmp_path, steps=2) as captured:
        for _ in range(3):
            seen_loss, seen = train(model, inputs)
            assert torch.equal(loss, seen_loss)
            assert seen.keys() == gradients.keys()
            assert all(torch.equal(seen[name], gradients[name]) for name in gradients)
    assert sorted(path.name for path in captured.files) == [
        f"step{step}_layer{layer}.safetensors" for step in (0, 1) for layer in (0, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in captured.files)
    again_loss, again = train(model, inputs)
    assert torch.equal(loss, again_loss) and all(torch.equal(again[name], gradients[name]) for name in gradients)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_file_holds_what_the_layer_computed(tmp_path: Path, layer: int) -> None:
    model = gpt_oss(dtype=torch.float32)
    with sinkscope.capture(model, tmp_path, layers=[layer]) as captured:
        _, gradients = train(model, batch())
    tensors, facts = read(captured.files[0])
    assert facts["window"] == ("16" if layer == 0 else "0") and facts["causal"] == "1" and facts["layer"] == str(layer)
    q, k, v, sinks = (tensors[name].double().requires_grad_() for name in ("q", "k", "v", "sinks"))
    scores = q @ k.repeat_interleave(4, 1).transpose(2, 3) * float(facts["scale"])
    distance = torch.arange(48)[:, None] - torch.arange(48)[None, :]
    scores = scores.masked_fill((distance < 0) | (distance >= (16 if layer == 0 else 99)), -torch.inf)
    logits = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(2, 8, 48, 1)], -1)
    out = logits.softmax(-1)[..., :-1] @ v.repeat_interleave(4, 1)
    truth = torch.autograd.grad(out, (q, k, v, sinks), tensors["dout"].double())
    for name, ref in zip(("out", "dq", "dk", "dv", "dsinks"), (out, *truth)):
        torch.testing.assert_close(tensors[f"eager.{name}"].double(), ref, rtol=1e-4, atol=1e-5 * ref.abs().max().item())
    torch.testing.assert_close(tensors["eager.dsinks"], gradients[f"model.layers.{layer}.self_attn.sinks"], rtol=0, atol=0)


def judged(folder: Path, name: str, has_sinks: bool = True) -> list[Judgement]:
    """What the command says of the outputs recorded under `name` in the captures of a folder."""
    os.environ["SINKSCOPE_EXECUTABLE"] = str(command())
    return judge([folder], [f"recorded.{name}"], dtype="bf16", has_sinks=has_sinks)


def test_explain_names_a_sink_that_is_left_out(tmp_path: Path) -> None:
    with sinkscope.capture(model := gpt_oss("without_sinks"), tmp_path / "captures"):
        train(model, batch())
    answers = judged(tmp_path / "captures", "without_sinks")
    assert len(answers) == 2
    for answer in answers:
        assert any(mistake.startswith("sink_ignored:") for mistake in answer.mistakes), answer.mistakes
        assert answer.sinks_train is False


def test_the_kernel_has_nothing_but_rounding(tmp_path: Path) -> None:
    with sinkscope.capture(model := gpt_oss("with_the_kernel"), tmp_path / "captures"):
        train(model, batch())
    answers = judged(tmp_path / "captures", "with_the_kernel")
    assert len(answers) == 2
    for answer in answers:
        assert not answer.mistakes and answer.sinks_train and answer.errors["dq"] < 0.005


@pytest.mark.parametrize("inputs", ["plain", "padded", "left_padded"])
def test_explain_finds_no_mistake_in_eager(tmp_path: Path, inputs: str) -> None:
    given = batch()
    if inputs != "plain":
        mask = torch.ones(2, 48, dtype=torch.long)
        mask[1, 30:] = 0
        mask = mask.flip(1) if inputs == "left_padded" else mask
        given |= {"attention_mask": mask, "labels": given["labels"].masked_fill(mask == 0, -100)}
    with sinkscope.capture(model := gpt_oss("eager"), tmp_path / "captures") as captured:
        train(model, given)
    assert not captured.left_out
    answers = judged(tmp_path / "captures", "eager")
    assert len(answers) == 2
    for answer in answers:
        assert not answer.mistakes and answer.sinks_train
        assert answer.errors["dq"] < 0.02


def test_packed_documents_come_from_position_ids(tmp_path: Path) -> None:
    """GptOssModel makes its mask without position_ids: eager lets documents see each other, which explain names."""
    given = batch(b=1) | {"position_ids": torch.cat([torch.arange(20), torch.arange(28)])[None]}
    with sinkscope.capture(model := gpt_oss("eager"), tmp_path / "captures") as captured:
        train(model, given)
    tensors, facts = read(captured.files[1])
    assert tensors["cu_seqlens"].tolist() == [0, 20, 48]
    if facts.get("mask") is None:
        pytest.skip("this transformers isolates packed documents for GPT-OSS")
    assert facts["mask"] == "the mask lets documents see each other"
    for answer in judged(tmp_path / "captures", "eager"):
        assert any(mistake.startswith("documents_leak:") for mistake in answer.mistakes), answer.mistakes


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_without_sinks(tmp_path: Path, attention: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=1, hidden_size=64, intermediate_size=64, vocab_size=97, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=64, initializer_range=0.12)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.bfloat16)
    with sinkscope.capture(model.train(), tmp_path / "captures") as captured:
        train(model, batch())
    assert "sinks" not in read(captured.files[0])[0]
    (answer,) = judged(tmp_path / "captures", attention, has_sinks=False)
    assert not answer.mistakes and answer.errors["dq"] < 0.02


def test_limits_are_kept_and_told(tmp_path: Path) -> None:
    model = gpt_oss()
    with sinkscope.capture(model, tmp_path, layers=[1], max_rows=32, max_heads=4, max_batch=1) as captured:
        train(model, batch())
    tensors, facts = read(captured.files[0])
    assert tensors["q"].shape == (1, 4, 32, 64) and tensors["k"].shape == (1, 1, 32, 64) and tensors["sinks"].shape == (4,)
    assert {name for name in tensors if name.startswith("eager.")} == {"eager.out", "eager.dq"}
    assert facts["kept"] == "batch 1 of 2, query heads 4 of 8, rows 32 of 48"
    assert {"absent_dk", "absent_dv", "absent_dsinks"} <= facts.keys()
    with sinkscope.capture(model, tmp_path, layers=[1], max_heads=4, overwrite=True) as captured:
        _, gradients = train(model, batch())
    assert torch.equal(read(captured.files[0])[0]["eager.dsinks"], gradients["model.layers.1.self_attn.sinks"][:4])


def test_one_backward_for_two_forwards_gives_no_dsinks(tmp_path: Path) -> None:
    model = gpt_oss()
    with sinkscope.capture(model, tmp_path, layers=[0], steps=2) as captured:
        (model(**batch()).loss + model(**batch()).loss).backward()
    assert len(captured.files) == 2
    assert all("eager.dsinks" not in read(path)[0] and "absent_dsinks" in read(path)[1] for path in captured.files)


@pytest.mark.parametrize("arguments, message", [
    (dict(layers=[7]), r"layers=\[7\], the model has the layers 0 to 1"), (dict(steps=0), "steps=0"),
    (dict(max_rows=0), "max_rows=0")])
def test_arguments_that_do_not_fit(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), sinkscope.capture(gpt_oss(), tmp_path, **arguments):  # type: ignore[arg-type]
        pass


def test_nothing_is_lost_silently(tmp_path: Path) -> None:
    model = gpt_oss(attention_dropout=0.5)
    with pytest.warns(UserWarning, match="dropout=0.5"), pytest.raises(RuntimeError, match="dropout=0.5"):
        with sinkscope.capture(model, tmp_path):
            train(model, batch())
    with pytest.raises(RuntimeError, match="no attention call"), sinkscope.capture(model, tmp_path):
        pass
    model = gpt_oss()
    with sinkscope.capture(model, tmp_path / "once"):
        train(model, batch())
    with pytest.raises(FileExistsError, match="overwrite=True"), sinkscope.capture(model, tmp_path / "once"):
        pass
