"""The edit inside the host's forward pass: hooks on the projections, there for one pass alone.

The hooks are put in when a pass begins and taken out when it ends, however it ends. So nothing is
left on the model after a run, an error or a Cancel; a second branch that shares the model never
sees them; and whatever else has replaced these forwards by then (another pack's object patch, a
LoRA in bypass mode) is inside ours, so that it works on the edited text as it would on any text.
The host's object patches would stay on the model until another clone of it is loaded, and lie
inside injections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..edit import GatedEdit, PreparedContext, add_values
from .models import Layer

# Packs that build a new context for every layer (attention coupling) would otherwise keep them all.
MAX_CONTEXTS = 8


class Differences:
    """D [J, out] of every layer, kept on the devices and in the dtypes that they were used in."""

    def __init__(self, by_layer: Mapping[str, Tensor]) -> None:
        self.by_layer = dict(by_layer)
        self._moved: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def like(self, path: str, values: Tensor) -> Tensor:
        """D of the layer at `path`, ready to be added to `values`."""
        source = self.by_layer[path]
        if source.device == values.device and source.dtype == values.dtype:
            return source
        key = (path, values.device, values.dtype)
        if key not in self._moved or source.requires_grad:
            self._moved[key] = source.to(values)
        return self._moved[key]


class EditedPass:
    """One forward pass: a context is edited when the first layer asks for it, then shared."""

    def __init__(self, edit: GatedEdit, differences: Differences) -> None:
        self.edit = edit
        self.differences = differences
        self._seen: list[tuple[Tensor, PreparedContext]] = []

    def prepare(self, context: Tensor) -> PreparedContext:
        """e' and the gates for `context` [..., T, d]. Contexts are told apart by identity."""
        for seen, prepared in self._seen:
            if seen is context:
                return prepared
        prepared = self.edit.prepare(context)
        if len(self._seen) == MAX_CONTEXTS:
            del self._seen[0]
        self._seen.append((context, prepared))
        return prepared


class KeyHook:
    """W_K e' through the layer's own forward."""

    def __init__(self, original: Any, current: EditedPass) -> None:
        self.original = original
        self.current = current

    def __call__(self, context: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.original(self.current.prepare(context).context, *args, **kwargs)


class ValueHook(KeyHook):
    """W_V e' through the layer's own forward, and the learned differences."""

    def __init__(self, original: Any, current: EditedPass, path: str) -> None:
        super().__init__(original, current)
        self.path = path

    def __call__(self, context: Tensor, *args: Any, **kwargs: Any) -> Any:
        prepared = self.current.prepare(context)
        values = self.original(prepared.context, *args, **kwargs)
        differences = self.current.differences.like(self.path, values)
        return add_values(values, prepared.weights, differences)


@contextmanager
def edited(
    layers: Mapping[str, Layer], edit: GatedEdit, differences: Differences
) -> Iterator[EditedPass]:
    """Within this context the layers' projections are edited; afterwards they are as before."""
    current = EditedPass(edit, differences)
    before: list[tuple[Any, Any]] = []
    try:
        for path in differences.by_layer:
            layer = layers[path]
            _put(layer.key, KeyHook(_own(layer.key), current), before)
            _put(layer.value, ValueHook(_own(layer.value), current, path), before)
        yield current
    finally:
        for module, forward in reversed(before):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def _own(module: Any) -> Any:
    """The module's forward without a hook of ours: a pass within a pass replaces the edit."""
    forward = module.forward
    return forward.original if isinstance(forward, KeyHook) else forward


def _put(module: Any, hook: KeyHook, before: list[tuple[Any, Any]]) -> None:
    # The instance's own dictionary: torch's __setattr__ takes longer and does the same here.
    before.append((module, module.__dict__.get("forward")))
    module.__dict__["forward"] = hook
