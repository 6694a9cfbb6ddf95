# SPDX-License-Identifier: Apache-2.0
"""attention_sink in transformers: the real GPT-OSS model, tiny and random, in fp32 against eager; packed documents alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

import sinkscope.transformers  # noqa: E402  (registers attention_sink)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # fp32: sums in another order


def tiny_config(**changes: object) -> object:
    values = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=32, vocab_size=97, num_local_experts=3, num_experts_per_tok=2, sliding_window=8,
                  layer_types=["sliding_attention", "full_attention"], max_position_embeddings=256, pad_token_id=0)
    return transformers.GptOssConfig(**(values | changes))


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """The same weights under eager and under attention_sink."""
    torch.manual_seed(0)
    model = transformers.GptOssForCausalLM._from_config(tiny_config(), attn_implementation="eager").float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=1.0 if name.endswith("sinks") else 0.1)
    other = copy.deepcopy(model)
    other.set_attn_implementation(sinkscope.transformers.NAME)
    assert other.config._attn_implementation == "attention_sink"
    return {"eager": model.eval(), "attention_sink": other.eval()}


def step(model: nn.Module, tokens: Tensor, **inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of the mean cross entropy of the next token where the mask has one."""
    model.zero_grad()
    logits = model(tokens, use_cache=False, **inputs).logits
    there = inputs.get("attention_mask", torch.ones_like(tokens)).bool()
    both = there[:, 1:] & there[:, :-1]
    nn.functional.cross_entropy(logits[:, :-1][both], tokens[:, 1:][both]).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(1, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_a_training_step_is_that_of_eager(models: dict[str, nn.Module]) -> None:
    want, want_gradients = step(models["eager"], tokens(2, 40))
    got, gradients = step(models["attention_sink"], tokens(2, 40))
    torch.testing.assert_close(got, want, **CLOSE)
    assert gradients.keys() == want_gradients.keys()
    assert sum(name.endswith("sinks") for name in gradients) == 2
    for name, gradient in gradients.items():
        assert not name.endswith("sinks") or want_gradients[name].abs().min() > 0, name
        torch.testing.assert_close(gradient, want_gradients[name], rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_takes_no_part(models: dict[str, nn.Module], side: str) -> None:
    mask = torch.ones(3, 24, dtype=torch.long)
    for row, missing in enumerate((0, 5, 17)):
        if missing:
            mask[row, slice(0, missing) if side == "left" else slice(24 - missing, 24)] = 0
    want, want_gradients = step(models["eager"], tokens(3, 24), attention_mask=mask)
    got, gradients = step(models["attention_sink"], tokens(3, 24), attention_mask=mask)
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], **CLOSE)
    for name in gradients:
        torch.testing.assert_close(gradients[name], want_gradients[name], rtol=1e-3, atol=1e-6)


def packed(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [1, S], positions that start again, and offsets."""
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return tokens(1, sum(lengths), seed=2), positions, offsets


@pytest.mark.parametrize("told_by", ["position_ids", "cu_seq_lens", "mask and position_ids"])
def test_packed_documents_are_documents_alone(models: dict[str, nn.Module], told_by: str) -> None:
    lengths = (13, 1, 22)
    row, positions, offsets = packed(lengths)
    inputs: dict[str, object] = {"position_ids": positions}
    if told_by == "cu_seq_lens":
        inputs |= {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": 22, "max_length_k": 22}
    if told_by == "mask and position_ids":
        mask = torch.ones(1, 40, dtype=torch.long)
        mask[:, 36:] = 0
        row = nn.functional.pad(row, (0, 4))
        inputs = {"position_ids": nn.functional.pad(positions, (0, 4)), "attention_mask": mask}
    model = models["attention_sink"]
    with torch.no_grad():
        together = model(row, use_cache=False, **inputs).logits[0]
        at = 0
        for length in lengths:
            alone = model(row[:, at:at + length], use_cache=False).logits[0]
            torch.testing.assert_close(together[at:at + length], alone, rtol=1e-5, atol=1e-6)
            at += length


def test_batches_of_packed_rows(models: dict[str, nn.Module]) -> None:
    rows = tokens(2, 12, seed=3)
    positions = torch.stack([torch.cat([torch.arange(5), torch.arange(7)]), torch.cat([torch.arange(9), torch.arange(3)])])
    model = models["attention_sink"]
    with torch.no_grad():
        together = model(rows, position_ids=positions, use_cache=False).logits
        for row, cut in ((0, 5), (1, 9)):
            for part in (slice(0, cut), slice(cut, 12)):
                alone = model(rows[row:row + 1, part], use_cache=False).logits[0]
                torch.testing.assert_close(together[row, part], alone, rtol=1e-5, atol=1e-6)


def test_generation_with_the_cache_is_eagers(models: dict[str, nn.Module]) -> None:
    prompt = tokens(2, 20, seed=4)
    mask = torch.ones_like(prompt)
    mask[1, :6] = 0
    said = {name: model.generate(prompt, attention_mask=mask, max_new_tokens=20, do_sample=False, return_dict_in_generate=True,
                                 output_logits=True) for name, model in models.items()}
    for got, want in zip(said["attention_sink"].logits, said["eager"].logits, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)
    assert torch.equal(said["attention_sink"].sequences, said["eager"].sequences)


def test_what_would_be_wrong_is_refused(models: dict[str, nn.Module]) -> None:
    model, row = models["attention_sink"], tokens(1, 8)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 1, 8, 8\)"):
        model(row, attention_mask=torch.zeros(1, 1, 8, 8))
    offsets = torch.tensor([0, 8], dtype=torch.int32)
    with pytest.raises(ValueError, match="one of them"):
        model(row, cu_seq_lens_q=offsets)
    mask = torch.ones(1, 8, dtype=torch.long)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="supported is one of them"):
        model(row, attention_mask=mask, cu_seq_lens_q=offsets, cu_seq_lens_k=offsets)
    query = torch.randn(1, 4, 8, 32)
    with pytest.raises(ValueError, match="dropout is 0.1"):
        sinkscope.transformers.attention_sink(nn.Module(), query, query, query, dropout=0.1)


def test_gradients_of_sinks_are_there_under_checkpointing(models: dict[str, nn.Module]) -> None:
    model = copy.deepcopy(models["attention_sink"]).train()
    plain = step(model, tokens(1, 16))[1]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = step(model, tokens(1, 16))[1]
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)
