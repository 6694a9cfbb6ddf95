# SPDX-License-Identifier: Apache-2.0
"""Is a GPT-OSS training step with attention_sink that of eager in fp32? The attention alone is put into a format, in a model
that is fp32 for the rest, so that what differs is the attention's; eager's in the same format is the measure."""

from __future__ import annotations

import torch
from gpu_python import models
from gpu_report import Report
from torch import Tensor, nn

PARAMETERS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "sinks")
ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11}


def relative(got: Tensor | None, ref: Tensor) -> float:
    """|got - ref| / |ref|; nothing at all is infinitely far."""
    return float("inf") if got is None else ((got.double() - ref.double()).norm() / ref.double().norm()).item()


def _gradients(of: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


def _norm(gradients: dict[str, Tensor]) -> float:
    return sum(g.double().square().sum().item() for g in gradients.values()) ** 0.5


def errors(of: nn.Module, implementation: str, ids: Tensor, want: tuple[Tensor, Tensor, dict[str, Tensor]]) -> dict[str, float]:
    """Relative L2 errors: of the logits, of each kind of attention parameter's gradient (the worse layer), and of all."""
    of.set_attn_implementation(implementation)
    logits, loss = models.step(of, ids)
    got = _gradients(of)
    found = {"loss": abs((loss - want[1]).item() / want[1].item()), "logits": relative(logits, want[0])}
    for kind in PARAMETERS:
        names = [name for name in want[2] if name.endswith(kind)]
        found[kind] = max(relative(got.get(name), want[2][name]) for name in names)
    difference = {name: got.get(name, torch.zeros_like(ref)) - ref for name, ref in want[2].items()}
    found["all gradients"] = _norm(difference) / _norm(want[2])
    found["norm"] = _norm(got) / _norm(want[2])
    return found


def run(report: Report, device: str, small: bool, rows: int) -> None:
    of = models.model(small, device)
    ids = models.tokens(rows, device)
    of.set_attn_implementation("eager")
    logits, loss = models.step(of, ids)
    want = (logits, loss, _gradients(of))
    formats = ["bf16", "fp16"] if device == "cuda" else ["bf16"]
    contestants = [f"{name}_{suffix}" for suffix in formats for name in ("attention_sink", "eager")]
    contestants += ["fa2_without_sinks_bf16"] if device == "cuda" else []
    found = {name: errors(of, name, ids, want) for name in contestants}
    _tell(report, found, loss.item(), rows, of)
    for suffix in formats:
        _judge(report, found, suffix)
    _packed(report, of, device, rows)


def _judge(report: Report, found: dict[str, dict[str, float]], suffix: str) -> None:
    """No farther from eager in fp32 than eager is in the same format, but for what two roundings differ by chance."""
    mine, eager = found[f"attention_sink_{suffix}"], found[f"eager_{suffix}"]
    for what in ("logits", *PARAMETERS, "all gradients"):
        limit = max(1.1 * eager[what], ROUNDING[suffix] / 8)
        if not mine[what] <= limit:
            report.failed(f"step: {what} of attention_sink in {suffix} is off by {mine[what]:.3g}, eager in {suffix} by "
                          f"{eager[what]:.3g}")


def _tell(report: Report, found: dict[str, dict[str, float]], loss: float, rows: int, of: nn.Module) -> None:
    heads = of.config
    report.add("", "## A training step beside eager in fp32", "",
               f"GPT-OSS with {heads.num_hidden_layers} layers (window {heads.sliding_window} and full), "
               f"{heads.num_attention_heads}/{heads.num_key_value_heads} heads of {heads.head_dim}, "
               f"hidden size {heads.hidden_size}, "
               f"random weights in fp32, TF32 off, {rows} tokens, loss {loss:.4f}. The attention alone computes in the format that "
               "its name ends with. Figures are |got - ref| / |ref| with ref that of eager in fp32; of attention parameters the "
               "gradient of the worse layer; `norm` is the gradient norm over that of eager in fp32.", "")
    columns = list(next(iter(found.values())))
    report.table(["attention", *columns], [[name, *(f"{values[column]:.3g}" for column in columns)]
                                          for name, values in found.items()])
    report.add("Wanted: attention_sink no farther off than eager in the same format (a tenth for chance).")


def _packed(report: Report, of: nn.Module, device: str, rows: int) -> None:
    """Documents packed into one row, and padded ones in a batch, beside each alone."""
    lengths = [rows // 2 - 37, 1, rows // 4 + 5, 63]
    documents = [models.tokens(n, device, seed=10 + i)[0] for i, n in enumerate(lengths)]
    of.set_attn_implementation("attention_sink_bf16")
    with torch.no_grad():
        alone = [of(d[None], use_cache=False).logits[0] for d in documents]
        positions = torch.cat([torch.arange(n, device=device) for n in lengths])[None]
        packed = of(torch.cat(documents)[None], position_ids=positions, use_cache=False).logits[0]
        longest = max(lengths)
        ids = torch.stack([nn.functional.pad(d, (longest - len(d), 0)) for d in documents])
        mask = torch.stack([nn.functional.pad(torch.ones_like(d), (longest - len(d), 0)) for d in documents])
        padded = of(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=False).logits
    limit = ROUNDING["bf16"]
    rows_of = []
    for name, parts in (("packed", packed.split(lengths)), ("padded on the left", [p[-n:] for p, n in zip(padded, lengths)])):
        error = max(relative(part, ref) for part, ref in zip(parts, alone))
        rows_of.append([name, f"{error:.3g}"])
        if not error <= limit:
            report.failed(f"step: documents {name} are off by {error:.3g} from each alone, limit {limit:.3g}")
    report.add("", f"Documents of {', '.join(map(str, lengths))} tokens through attention_sink in bf16, beside each of them "
               "alone (logits, the worst document):", "")
    report.table(["documents", "relative L2"], rows_of)
