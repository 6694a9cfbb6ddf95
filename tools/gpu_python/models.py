# SPDX-License-Identifier: Apache-2.0
"""GPT-OSS models with the attention geometry of gpt-oss-20b and little else, and attention functions to put into them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, GptOssConfig, GptOssForCausalLM
from transformers.masking_utils import eager_mask, flash_attention_mask
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

import sinkscope.transformers

VOCABULARY = 4096


def config(small: bool) -> GptOssConfig:
    """Two layers, window 128 and full. All of its experts are asked for every token: where two are of one mind, an error of
    one rounding would otherwise choose another expert, and no two formats could be compared."""
    sizes = dict(hidden_size=64, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=64) if small else \
        dict(hidden_size=2880, intermediate_size=2880, num_attention_heads=64, num_key_value_heads=8, head_dim=64)
    return GptOssConfig(**sizes, num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=128,
                        num_local_experts=4, num_experts_per_tok=4, vocab_size=VOCABULARY, max_position_embeddings=131072,
                        pad_token_id=0)


def model(small: bool, device: str) -> nn.Module:
    """fp32, random; sinks are drawn too, so that they take a share of the softmax that matters."""
    torch.manual_seed(0)
    made = GptOssForCausalLM._from_config(config(small), attn_implementation="eager").float()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_(mean=1.0)
    return made.to(device)


def tokens(rows: int, device: str, seed: int = 1) -> Tensor:
    drawn = torch.randint(1, VOCABULARY, (1, rows), generator=torch.Generator().manual_seed(seed))
    return drawn.to(device)


def step(of: nn.Module, ids: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the loss of the next token, of which the gradients are left in the parameters."""
    of.zero_grad(set_to_none=True)
    logits = of(ids, use_cache=False, **inputs).logits
    loss = nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
    loss.backward()
    return logits.detach(), loss.detach()


class FlashWithoutSinks(torch.autograd.Function):
    """ATen's flash attention 2, as a model gets it whose attention does not know its sinks. [1, S, H, D] on a GPU."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
        out, lse, state, offset, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, None, None, q.shape[1], k.shape[1], 0.0, True, False, scale=scale,
            window_size_left=window - 1 if window else None, window_size_right=0 if window else None)
        ctx.save_for_backward(q, k, v, out, lse, state, offset)
        ctx.scale, ctx.window = scale, window
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, state, offset = ctx.saved_tensors
        window = ctx.window
        gradients = torch.ops.aten._flash_attention_backward(
            gradient.contiguous(), q, k, v, out, lse, None, None, q.shape[1], k.shape[1], 0.0, True, state, offset,
            scale=ctx.scale, window_size_left=window - 1 if window else None, window_size_right=0 if window else None)
        return *gradients, None, None


def fa2_without_sinks(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                      scaling: float, sliding_window: int | None = None, **rest: object) -> tuple[Tensor, None]:
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    return FlashWithoutSinks.apply(q, k, v, scaling, sliding_window or 0), None


# By the names that transformers knows them by, fa2_without_sinks once it is registered; each with its mask.
FUNCTIONS = {"attention_sink": (sinkscope.transformers.attention_sink, flash_attention_mask),
             "eager": (eager_attention_forward, eager_mask),
             "fa2_without_sinks": (fa2_without_sinks, flash_attention_mask)}


def in_format(function: Callable, dtype: torch.dtype) -> Callable:
    """The attention alone in a format, inside a model of another."""
    def cast(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
             **rest: object) -> tuple[Tensor, object]:
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.clamp_min(torch.finfo(dtype).min).to(dtype)
        out, weights = function(module, *(t.to(dtype) for t in (query, key, value)), attention_mask, **rest)
        return out.to(query.dtype), weights
    return cast


def register() -> None:
    """attention_sink, eager and flash without sinks, each as NAME_bf16 and NAME_fp16: the attention alone in that format."""
    AttentionInterface.register("fa2_without_sinks", fa2_without_sinks)
    AttentionMaskInterface.register("fa2_without_sinks", flash_attention_mask)
    for name, (function, mask) in FUNCTIONS.items():
        for suffix, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            AttentionInterface.register(f"{name}_{suffix}", in_format(function, dtype))
            AttentionMaskInterface.register(f"{name}_{suffix}", mask)
