# SPDX-License-Identifier: Apache-2.0
"""What the contestants compute: random cases from a problem line, and the captures."""
import json
import math
import pathlib
import struct
from dataclasses import dataclass

import numpy as np
import torch

# As `sinkscope bench kernel` has them (src/bench/gpu_bench.cpp).
PROBLEMS = [
    "b1 hq64 hkv8 sq4096 sk4096 d64 bf16 causal",
    "b1 hq64 hkv8 sq8192 sk8192 d64 bf16 causal",
    "b1 hq64 hkv8 sq16384 sk16384 d64 bf16 causal",
    "b4 hq64 hkv8 sq2048 sk2048 d64 bf16 causal",
    "b1 hq64 hkv8 sq4096 sk4096 d64 bf16 causal w128",
    "b1 hq64 hkv8 sq16384 sk16384 d64 bf16 causal w128",
    "b4 hq64 hkv8 sq2048 sk2048 d64 bf16 causal w128",
    "b1 hq32 hkv8 sq8192 sk8192 d128 bf16 causal",
    "b1 hq32 hkv8 sq16384 sk16384 d128 bf16 causal",
    "b1 hq64 hkv8 sq32768 sk32768 d64 bf16 causal w128",
    "b1 hq64 hkv8 sq32768 sk32768 d64 bf16 causal",
]
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I32": torch.int32}


@dataclass
class Case:
    """Causal attention; tensors lie on the GPU as [b, s, h, d]."""

    name: str
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    sinks: torch.Tensor  # [hq] fp32
    scale: float
    window: int = 0  # 0: none; counts the row's own key
    offsets: torch.Tensor | None = None  # of packed documents, int32 [documents + 1]
    causal: bool = True

    def documents(self) -> list[tuple[int, int]]:
        """First and last row + 1 of each document of a batch entry."""
        if self.offsets is None:
            return [(0, self.q.shape[1])]
        ends = self.offsets.tolist()
        return list(zip(ends, ends[1:]))

    def visible_pairs(self) -> int:
        pairs = 0
        for first, last in self.documents():
            n = last - first
            w = min(self.window or n, n)
            pairs += w * (w + 1) // 2 + (n - w) * w
        return pairs * self.q.shape[0] * self.q.shape[2]


def random_case(line: str, seed: int) -> Case:
    """The tokens b hq hkv sq sk d, a 16-bit format, causal and wN of a problem line; sq must be sk."""
    sizes, window, dtype, causal = {}, 0, None, False
    for token in line.split():
        name = token.rstrip("0123456789")
        if token in FORMATS:
            dtype = FORMATS[token]
        elif token == "causal":
            causal = True
        elif name == "w" and token != name:
            window = int(token[1:])
        elif name in ("b", "hq", "hkv", "sq", "sk", "d") and token != name:
            sizes[name] = int(token[len(name):])
        else:
            raise SystemExit(f"problem '{line}': token '{token}' is not one of b hq hkv sq sk d, bf16, fp16, causal, wN")
    if sorted(sizes) != ["b", "d", "hkv", "hq", "sk", "sq"] or sizes["sq"] != sizes["sk"] or dtype is None or not causal:
        raise SystemExit(f"problem '{line}': wanted b hq hkv sq sk d, sq equal to sk, a format and causal")
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(heads: int) -> torch.Tensor:
        shape = (sizes["b"], sizes["sq"], heads, sizes["d"])
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)

    # Near the LSE of a middle row's logits, so that the sink matters.
    typical = math.log(min(window or sizes["sk"], sizes["sk"] / 2))
    sinks = typical + torch.randn(sizes["hq"], generator=generator, device="cuda")
    return Case(line, normal(sizes["hq"]), normal(sizes["hkv"]), normal(sizes["hkv"]), normal(sizes["hq"]), sinks,
                sizes["d"] ** -0.5, window)


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = np.frombuffer(data, np.uint8)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        tensors[name] = torch.from_numpy(body[first:last].copy()).view(STORED[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def capture(path: pathlib.Path) -> Case:
    tensors, metadata = read_safetensors(path)
    if metadata.get("layout") != "bhsd" or metadata.get("causal") not in ("1", "true", "True"):
        raise SystemExit(f"{path}: layout {metadata.get('layout')}, causal {metadata.get('causal')}, wanted bhsd and causal")
    on_gpu = {name: tensors[name].cuda() for name in ("q", "k", "v", "dout", "sinks")}
    q, k, v, dout = (on_gpu[name].transpose(1, 2).contiguous() for name in ("q", "k", "v", "dout"))
    offsets = tensors["cu_seqlens"].cuda() if "cu_seqlens" in tensors else None
    return Case(path.stem, q, k, v, dout, on_gpu["sinks"].float(), float(metadata["scale"]), int(metadata["window"]), offsets)
