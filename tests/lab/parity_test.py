# SPDX-License-Identifier: Apache-2.0
"""The lab's model beside transformers' GptOssForCausalLM with the same weights, in fp32: logits and every gradient.

    python parity_test.py PARITY_PROGRAM

Exits with 77 and the reason where the interpreter lacks what is needed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from run import ALL_SKIPPED, missing, required  # noqa: E402

NEEDED = ("torch", "transformers", "safetensors")
LIMIT = 5e-6  # |got - ref| / |ref| of a tensor: fp32 sums in another order


def model(experts: int) -> object:
    import torch
    import transformers

    torch.manual_seed(0)
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.GptOssConfig(hidden_size=48, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
                                       num_key_value_heads=2, head_dim=16, vocab_size=61, num_local_experts=experts,
                                       num_experts_per_tok=min(experts, 2), sliding_window=5, layer_types=layers, pad_token_id=0,
                                       max_position_embeddings=64,
                                       rope_parameters={"rope_type": "default", "rope_theta": 20000.0})
    made = transformers.GptOssForCausalLM._from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(std=1.0 if name.endswith("sinks") else 0.15)
            if "norm" in name:
                parameter.add_(1)
    return made


def off(got: object, want: object) -> float:
    """|got - want| / |want|, or |got| where `want` is zero."""
    return float((got - want).norm() / (want.norm() or 1))


def compare(experts: int) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    ref = model(experts)
    tokens = torch.randint(1, 61, (3, 17), generator=torch.Generator().manual_seed(1))
    logits = ref(tokens, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 61), tokens[:, 1:].reshape(-1)).backward()
    # The router of one expert has a gradient of zero, or none.
    want = {name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in ref.named_parameters()} | {"logits": logits.detach()}
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("model.safetensors", "tokens.safetensors")]
        save_file({name: parameter.detach().contiguous() for name, parameter in ref.named_parameters()}, files[0])
        save_file({"tokens": tokens}, files[1])
        for attention in ("exact", "eager_fp32", "sink_kernel"):
            out = str(Path(folder) / f"{attention}.safetensors")
            ran = subprocess.run([sys.argv[1], *files, attention, out, str(experts)], capture_output=True, text=True, check=False)
            if ran.returncode == ALL_SKIPPED:
                print(f"skipped: {ran.stderr}")
                sys.exit(ALL_SKIPPED)
            assert ran.returncode == 0, ran.stderr
            got = load_file(out)
            assert got.keys() == want.keys(), got.keys() ^ want.keys()
            errors = {name: off(got[name], want[name]) for name in want}
            worst = max(errors, key=lambda name: errors[name])
            print(f"{experts} experts, {attention}: {len(errors)} tensors, the worst {worst} off by {errors[worst]:.1e}")
            assert errors[worst] < LIMIT, errors


def main() -> int:
    reason = missing(NEEDED)
    if reason:
        print(f"skipped: {reason}")
        return 1 if required() else ALL_SKIPPED
    for experts in (4, 1):
        compare(experts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
