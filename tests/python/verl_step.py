# SPDX-License-Identifier: Apache-2.0
"""A step of a tiny GPT-OSS as verl makes one, up to where it wants a GPU: its own configuration with the overrides given as
arguments, its own engine's loading of the model, and packed rows as it hands them over. Prints a line of JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch


def composed(folder: str, overrides: list[str]) -> object:
    """verl's actor_rollout_ref as `python -m verl.trainer.main_ppo` composes it."""
    import verl
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer/config"), version_base=None):
        config = compose("ppo_trainer", overrides=[f"actor_rollout_ref.model.path={folder}",
                                                   "+actor_rollout_ref.model.load_tokenizer=false", *overrides])
    return config.actor_rollout_ref


def loaded(config: object) -> torch.nn.Module:
    """The model as verl's FSDP engine loads it, before it is sharded."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    model, actor = omega_conf_to_dataclass(config.model), config.actor
    engine = FSDPEngineWithLMHead(model, *map(omega_conf_to_dataclass, (actor.fsdp_config, actor.optim, actor.checkpoint)))
    return engine._build_module()


def main() -> None:
    import transformers

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        layers = ["sliding_attention", "full_attention"]
        tiny = transformers.GptOssConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                         num_key_value_heads=2, head_dim=32, vocab_size=97, num_local_experts=3,
                                         num_experts_per_tok=2, sliding_window=8, layer_types=layers, pad_token_id=0)
        transformers.GptOssForCausalLM(tiny).save_pretrained(folder)
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        model = loaded(composed(folder, sys.argv[1:]))
        torch.distributed.destroy_process_group()
    positions = torch.cat([torch.arange(13), torch.arange(22)])[None]
    row = torch.randint(1, 97, positions.shape)
    together = model(input_ids=row, attention_mask=None, position_ids=positions, use_cache=False).logits
    together.square().mean().backward()
    with torch.no_grad():
        alone = torch.cat([model(part, use_cache=False).logits for part in row.split([13, 22], 1)], 1)
    sinks = [p.grad for name, p in model.named_parameters() if name.endswith("sinks")]
    print(json.dumps({"implementation": model.config._attn_implementation,
                      "leak": (together - alone).abs().max().item(),
                      "smallest sink gradient": min(float(g.abs().min()) if g is not None else 0.0 for g in sinks)}))


if __name__ == "__main__":
    main()
