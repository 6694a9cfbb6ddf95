# SPDX-License-Identifier: Apache-2.0
"""Is an attention implementation right for a model? Measured before training: `python -m sinkscope preflight`."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sinkscope._capture import capture
from sinkscope._cost import Cost, measure_cost
from sinkscope._judge import Judgement, NoCommand, judge
from sinkscope._reduced_model import TESTED_WINDOW, build, has_sinks, layer_kinds, read_config, train_step

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# The command's path that computes what an implementation does, where it cannot be loaded here.
_PATHS = {"eager": "eager", "attention_sink": "sink_kernel", "flash_attention_2": "flash_attention_2",
          "flash_attention_3": "flash_attention_2", "sdpa": "flash_attention_2"}


@dataclass
class Report:
    """The answer of a pre-training check; `exit_code` is 0 where `attention` is right, 1 where it is wrong."""

    model: str
    attention: str
    has_sinks: bool
    geometries: list[str] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    costs: dict[str, list[Cost]] = field(default_factory=dict)  # by implementation, by layer of the test model
    notes: list[str] = field(default_factory=list)

    @property
    def correct(self) -> bool:
        return bool(self.judgements) and not any(judged.mistakes for judged in self.judgements)

    @property
    def exit_code(self) -> int:
        return 0 if self.correct else 1

    def advice(self) -> str:
        """What to set as attn_implementation."""
        if self.has_sinks:
            keep = f"keep {self.attention}" if self.correct else "set attn_implementation=attention_sink, or eager"
            return f"{keep}: a model with sinks wants attention_sink or eager, and never flash_attention_2"
        if self.correct and self.attention == "flash_attention_2":
            return "keep flash_attention_2: without sinks it is right and quick; where sinks are added, attention_sink"
        return "set attn_implementation=flash_attention_2: the model has no sinks; where sinks are added, attention_sink"

    def markdown(self) -> str:
        """The page."""
        lines = [f"# {self.attention} for {self.model}: {'correct' if self.correct else 'WRONG'}", ""]
        lines += [f"* {text}" for text in self.geometries]
        lines += [f"* {text}" for text in self.notes]
        lines += ["", "| case | path | answer | out | dq | dk | dv | dsinks |", "|---|---|---|---|---|---|---|---|"]
        for judged in self.judgements:
            errors = [f"{judged.errors[name]:.1e}" if name in judged.errors else "" for name in ("out", "dq", "dk", "dv")]
            sinks = {None: "no sinks", False: "no gradient", True: f"{judged.errors.get('dsinks', 0.0):.1e}"}[judged.sinks_train]
            lines.append(f"| {judged.case} | {judged.path} | {'WRONG' if judged.mistakes else 'correct'} | "
                         f"{' | '.join(errors)} | {sinks} |")
        lines += ["", "The figures are errors relative to the size of the exact result, over all heads.", ""]
        for judged in self.judgements:
            lines += [f"* {judged.case}: {text}" for text in judged.mistakes or judged.roundings]
            lines += [f"* {judged.case}: farthest {judged.worst}"] if judged.mistakes and judged.worst else []
            lines += [f"* {judged.case}: to mend it, {judged.fix}"] if judged.fix else []
        lines += [f"* {name}, layer {cost.layer} of the test model: {cost.milliseconds:.2f} ms for forward and backward here, "
                  f"{cost.kept_bytes / 2**20:.1f} MiB kept for the backward"
                  for name, costs in self.costs.items() for cost in costs]
        lines += [] if self.attention in self.costs else [f"* {self.attention}: no time and memory, as it does not run here"]
        return "\n".join([*lines, "", f"**What to do:** {self.advice()}.", ""])


def _problem_lines(config: Any, rows: int, dtype: str, sinks: bool) -> list[str]:
    """One problem line for each kind of layer."""
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    base = f"b1 hq{heads} hkv{groups} sq{rows} sk{rows} d{size} {dtype} causal" + ("" if sinks else " sink=none")
    lines = []
    for kind in layer_kinds(config):
        slides = window and (kind == "sliding_attention" or not getattr(config, "layer_types", None))
        lines.append(base + (f" w{min(window, TESTED_WINDOW)}" if slides else "") + " seed=1")
    return lines


def _run_real(report: Report, model: torch.nn.Module, rows: int, dtype: str, record: Path | None) -> None:
    """Captures a step of the reduced model under the implementation that transformers really gives it."""
    real = str(model.config._attn_implementation)
    if real != report.attention:
        report.notes.append(f"transformers gives this model {real} in place of {report.attention}")
    with tempfile.TemporaryDirectory(prefix="sinkscope") as folder:
        with capture(model, folder, max_rows=rows, max_heads=1024) as captured:
            train_step(model, rows)
        files = sorted(captured.files)
        names = {name.rsplit(".", 1)[0] for name in _tensor_names(files[0]) if name.endswith(".out")}
        report.judgements = judge(files, [f"recorded.{name}" for name in names], dtype=dtype,
                                  has_sinks=report.has_sinks, record=record)
    report.costs[report.attention] = measure_cost(model, lambda: train_step(model, rows))


def _why(error: Exception) -> str:
    """transformers raises what it likes; its kind and its first line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _measure_instead(report: Report, config: Any, attention: str, rows: int, dtype: torch.dtype, place: str,
                     add_sinks: bool) -> None:
    """What might be set instead costs so much; nothing is said where it does not run here."""
    try:
        if attention == "attention_sink":
            importlib.import_module("sinkscope.transformers")
        model = build(config, attention, dtype, place, add_sinks)
        report.costs[attention] = measure_cost(model, lambda: train_step(model, rows))
    except Exception as error:  # as in building what is asked for
        report.notes.append(f"{attention} is not timed here ({_why(error)})")


def _register_attention_sink(report: Report) -> None:
    """Makes attention_sink known to transformers, as training does with `import sinkscope.transformers`."""
    try:
        importlib.import_module("sinkscope.transformers")
    except ImportError as error:
        report.notes.append(f"attention_sink is not registered: {error}")


def _note_replacement(report: Report, model: torch.nn.Module) -> None:
    """Says so where transformers replaces a flash implementation, which it does with one line of a log."""
    taken = getattr(model, "_compatible_flash_implementations", None)
    if taken and "flash" in report.attention and report.attention not in taken:
        report.notes.append(f"transformers gives this model {taken[0]} in place of {report.attention} where that can be "
                            "loaded; its backward has no gradient for the sinks")


def _tensor_names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def preflight(model: str | Path, attention: str = "attention_sink", *, rows: int = 256, dtype: str = "bf16",
              add_sinks: bool = False, record: Path | None = None, device: str | None = None) -> Report:
    """Judges `attention` (a value of attn_implementation) for a model folder or config.json before it is trained.

    A model of the same family is built with one layer of each kind at the real head counts, head size and window (at
    most 128), random weights and sinks from weak to strong; one training step of `rows` tokens runs through the
    attention function that transformers really gives it, and the sinkscope command compares and explains what it did.
    With `add_sinks` that model has sinks added, as `sinkscope.add_sinks` does. Where the implementation cannot be loaded
    here, the command runs its own path of that name on the same geometry. `record` is an HDF5 file to write. Raises
    ValueError for arguments that do not fit, ImportError and NoCommand where something is missing.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r}, supported are {', '.join(_DTYPES)}")
    if rows < 2:
        raise ValueError(f"rows={rows}, supported are whole numbers from 2")
    config = read_config(model)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    plain = build(config, "eager", _DTYPES[dtype], "cpu")
    sinks = has_sinks(plain)
    if add_sinks and sinks:
        raise ValueError(f"add_sinks=True, but {config.model_type} has sinks already")
    report = Report(str(model), attention, sinks or add_sinks)
    lines = _problem_lines(config, rows, dtype, report.has_sinks)
    report.geometries = [f"{count} layers of {kind}: {line}" for (kind, count), line in zip(layer_kinds(config).items(), lines)]
    if (getattr(config, "sliding_window", None) or 0) > TESTED_WINDOW:
        report.notes.append(f"the window of {config.sliding_window} is tested as one of {TESTED_WINDOW}")
    if attention == "attention_sink":
        _register_attention_sink(report)
    if sinks:
        _note_replacement(report, plain)
    real: torch.nn.Module | None = None
    try:
        real = build(config, attention, _DTYPES[dtype], place, add_sinks=add_sinks)
    except Exception as error:  # transformers raises what it likes for an implementation that is not there
        report.notes.append(f"{attention} cannot be loaded here ({_why(error)})")
    if add_sinks:
        report.notes.append("with sinks added, from weak to strong")
    if real is not None:
        _run_real(report, real, rows, dtype, record)
    elif attention in _PATHS:
        report.notes.append(f"judged by the command's path {_PATHS[attention]}")
        report.judgements = judge(lines, [_PATHS[attention]], dtype=dtype, has_sinks=report.has_sinks, record=record)
    else:
        raise ValueError(f"attention={attention!r} cannot be loaded here, and the command has no path for it; it has "
                         f"them for {', '.join(_PATHS)}. {'; '.join(report.notes)}")
    for other in ["eager", "attention_sink"] if report.has_sinks else ["eager"]:
        if other != attention:
            _measure_instead(report, config, other, rows, _DTYPES[dtype], place, add_sinks)
    return report


def main(arguments: list[str] | None = None) -> int:
    """The command line. Exit codes: 0 correct, 1 wrong, 2 usage or input, 3 something is missing here."""
    parser = argparse.ArgumentParser(prog="sinkscope preflight", description=__doc__)
    parser.add_argument("--model", required=True, help="a model folder or a config.json")
    parser.add_argument("--attn", default="attention_sink", help="attn_implementation to judge (default attention_sink)")
    parser.add_argument("--rows", type=int, default=256, help="tokens of the training step (default 256)")
    parser.add_argument("--dtype", default="bf16", help="bf16 (default), fp16 or fp32")
    parser.add_argument("--add-sinks", action="store_true", help="judge for the model with sinks added")
    parser.add_argument("-o", "--output", type=Path, help="write the HDF5 record here")
    parser.add_argument("--markdown", type=Path, help="write the page here too")
    given = parser.parse_args(arguments)
    try:
        report = preflight(given.model, given.attn, rows=given.rows, dtype=given.dtype, add_sinks=given.add_sinks,
                           record=given.output)
    except (ValueError, OSError) as error:
        print(f"sinkscope preflight: {error}", file=sys.stderr)
        return 2
    except (ImportError, NoCommand) as error:
        print(f"sinkscope preflight: {error}", file=sys.stderr)
        return 3
    page = report.markdown()
    print(page)
    if given.markdown:
        given.markdown.write_text(page)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
