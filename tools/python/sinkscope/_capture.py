# SPDX-License-Identifier: Apache-2.0
"""Records attention calls of a training step as captures that `sinkscope compare` and `explain` read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sinkscope._call import Meaning, NotRepresentable, read_meaning
from sinkscope._capture_file import CaptureLimits, Recorded, write_capture
from sinkscope._intercept import intercepted


@dataclass
class Capture:
    """What a capture wrote and what it could not: `files` grows when the context closes or a layer runs again."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # 'layer 3, step 0: why'


@dataclass
class _Layer:
    number: int
    calls: int = 0
    pending: int = 0  # forward passes whose backward has not come
    open: list[Recorded] = field(default_factory=list)  # forward passes whose backward has not come or not ended


class _Recorder:
    """Takes the calls of the chosen modules; everything that it returns to the model is what the model would have had."""

    def __init__(self, capture: Capture, layers: dict[int, _Layer], wanted: Callable[[int], bool],
                 limits: CaptureLimits, overwrite: bool) -> None:
        self.capture, self.layers, self.wanted = capture, layers, wanted
        self.limits, self.overwrite = limits, overwrite

    def visit(self, function: Callable[..., Any], module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
              value: torch.Tensor, mask: torch.Tensor | None = None, *rest: Any, **keywords: Any) -> Any:
        layer = self.layers.get(id(module))
        if layer is None or not torch.is_grad_enabled() or self._recomputes(layer):
            return function(module, query, key, value, mask, *rest, **keywords)
        record = self._record(layer, module, query, key, value, mask, keywords)
        if record is not None:
            # Views of their own, so that the gradients are those of this call where a tensor has other uses.
            query, key, value = (tensor.view_as(tensor) for tensor in (query, key, value))
        result = function(module, query, key, value, mask, *rest, **keywords)
        if record is not None:
            self._follow(record, query, key, value, result[0])
        self._await_backward(layer, result[0])
        return result

    @staticmethod
    def _recomputes(layer: _Layer) -> bool:
        """Whether this is activation checkpointing running a forward pass that was seen again, inside the backward."""
        return torch._C._current_graph_task_id() != -1 and layer.pending > 0

    @staticmethod
    def _await_backward(layer: _Layer, out: torch.Tensor) -> None:
        def arrived(_: torch.Tensor) -> None:
            layer.pending -= 1

        if out.requires_grad:
            layer.pending += 1
            out.register_hook(arrived)

    def _record(self, layer: _Layer, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
                value: torch.Tensor, mask: torch.Tensor | None, keywords: dict[str, Any]) -> Recorded | None:
        """The record of this call with its inputs; None where its step is not wanted or it cannot be told."""
        step = layer.calls
        layer.calls += 1
        if torch._C._current_graph_task_id() == -1:
            self.flush(layer, only_complete=True)
        if not self.wanted(step):
            return None
        try:
            meaning = read_meaning(module, query, key, mask, keywords)
            return self._begin(layer, step, module, (query, key, value), keywords, meaning)
        except NotRepresentable as reason:
            self._leave_out(layer, step, str(reason))
            return None

    def _begin(self, layer: _Layer, step: int, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...],
               keywords: dict[str, Any], meaning: Meaning) -> Recorded:
        config = getattr(module, "config", None)
        sinks = keywords.get("s_aux")
        sinks = getattr(module, "sinks", None) if sinks is None else sinks
        record = Recorded(layer=layer.number, step=step, meaning=meaning, limits=self.limits,
                          implementation=str(getattr(config, "_attn_implementation", None) or "attention"),
                          model=f"{type(module).__name__} of {getattr(config, 'model_type', 'a model')}")
        record.take_inputs(*inputs)
        if isinstance(sinks, torch.Tensor):
            record.take_sinks(sinks)
            if sinks.requires_grad:
                shared = [other for other in layer.open if other.dout is None]
                for other in (*shared, record) if shared else ():
                    other.leave_out("dsinks", "two forward passes have one backward pass")
                record.handles.append(sinks.register_hook(partial(record.take_gradient, "dsinks")))
        layer.open.append(record)
        return record

    @staticmethod
    def _follow(record: Recorded, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> None:
        record.take_out(out)
        for name, tensor in (("dq", query), ("dk", key), ("dv", value)):
            if tensor.requires_grad:
                record.handles.append(tensor.register_hook(partial(record.take_gradient, name)))
        if out.requires_grad:
            record.handles.append(out.register_hook(record.take_dout))

    def _leave_out(self, layer: _Layer, step: int, reason: str) -> None:
        text = f"layer {layer.number}, step {step}: {reason}"
        self.capture.left_out.append(text)
        warnings.warn(f"sinkscope.capture leaves out {text}", stacklevel=3)

    def flush(self, layer: _Layer, only_complete: bool) -> None:
        """Writes the layer's records whose backward pass is over; the others stay, or are given up at the end."""
        for record in list(layer.open):
            if record.dout is None and only_complete:
                continue
            layer.open.remove(record)
            record.release()
            if record.dout is None:
                self._leave_out(layer, record.step, "no backward pass came through it")
                continue
            try:
                self.capture.files.append(write_capture(record, self.capture.folder, self.overwrite))
            except NotRepresentable as reason:
                self._leave_out(layer, record.step, str(reason))


def _attention_modules(model: torch.nn.Module) -> dict[int, list[torch.nn.Module]]:
    """The modules that carry a layer_idx and a way to ask for an attention function, by layer."""
    found: dict[int, list[torch.nn.Module]] = {}
    for module in model.modules():
        number = getattr(module, "layer_idx", None)
        if isinstance(number, int) and hasattr(module, "config"):
            found.setdefault(number, []).append(module)
    return found


def _chosen_steps(steps: int | Collection[int]) -> Callable[[int], bool]:
    if isinstance(steps, int) and not isinstance(steps, bool):
        if steps < 1:
            raise ValueError(f"steps={steps}, supported are a number of steps from 1 or the steps themselves, e.g. [0, 100]")
        return lambda step: step < steps
    chosen = frozenset(steps)
    if not chosen or not all(isinstance(step, int) and step >= 0 for step in chosen):
        raise ValueError(f"steps={steps!r}, supported are a number of steps from 1 or the steps themselves, e.g. [0, 100]")
    return chosen.__contains__


def _chosen_layers(model: torch.nn.Module, layers: Sequence[int] | None) -> dict[int, _Layer]:
    modules = _attention_modules(model)
    if not modules:
        raise ValueError(f"model={type(model).__name__} has no attention modules with a layer_idx, supported are models "
                         "of transformers whose attention goes through AttentionInterface")
    wanted = sorted(modules) if layers is None else list(layers)
    unknown = [number for number in wanted if number not in modules]
    if unknown or not wanted:
        raise ValueError(f"layers={layers!r}, the model has the layers {min(modules)} to {max(modules)}")
    return {id(module): _Layer(number) for number in wanted for module in modules[number]}


@contextmanager
def capture(model: torch.nn.Module, folder: str | Path, *, layers: Sequence[int] | None = None,
            steps: int | Collection[int] = 1, max_rows: int = 4096, max_batch: int = 4, max_heads: int = 16,
            overwrite: bool = False) -> Iterator[Capture]:
    """Records attention calls of `model` while it trains, one file step<S>_layer<L>.safetensors in `folder` for each.

        with sinkscope.capture(model, "captures/", layers=[0, 1]) as captured:
            model(**batch).loss.backward()
        # then: sinkscope compare captures/; sinkscope explain captures/

    A file holds q, k, v, sinks and dout of a layer (q and k after RoPE), and out, dq, dk, dv and dsinks as the
    implementation in use made them, whichever it is; a sink without a gradient has no dsinks. Training is untouched:
    loss and gradients are the same bit for bit.

    layers    numbers of layers (layer_idx), default all
    steps     so many steps from the start, or a collection of steps from 0. A step is one forward and backward pass
              of a layer, a micro-batch where gradients are accumulated; passes without gradient are not counted
    max_rows  rows of a batch entry. Of packed rows whole documents are kept; otherwise the first rows, without dk, dv
              and dsinks, which depend on the rest
    max_batch entries of a batch (fewer: without dsinks); max_heads query heads, whole groups, at least one
    overwrite replace files of an earlier capture, which is otherwise refused

    What was cut and left out stands in the files' metadata, and in `left_out` of the value that the context gives, with
    a warning. Raises ValueError for an argument that does not fit the model, FileExistsError, and RuntimeError at the
    end where nothing could be recorded. Not seen: layers that torch.compile compiled.
    """
    for name, value in (("max_rows", max_rows), ("max_batch", max_batch), ("max_heads", max_heads)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}, supported are whole numbers from 1")
    chosen = _chosen_layers(model, layers)
    wanted = _chosen_steps(steps)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    earlier = sorted(place.glob("step*_layer*.safetensors"))
    if earlier and not overwrite:
        raise FileExistsError(f"folder={str(place)!r} holds captures already ({earlier[0].name}); "
                              "choose another or set overwrite=True")
    captured = Capture(place)
    recorder = _Recorder(captured, chosen, wanted, CaptureLimits(max_rows, max_batch, max_heads), overwrite)
    finished = False
    try:
        with intercepted(recorder.visit):
            yield captured
        finished = True
    finally:
        for layer in chosen.values():
            recorder.flush(layer, only_complete=not finished)
            for record in layer.open:
                record.release()
    if not captured.files:
        reasons = "; ".join(captured.left_out) or "no attention call of these layers came with gradients enabled"
        raise RuntimeError(f"sinkscope.capture recorded nothing in {str(place)!r}: {reasons}")
