"""The edit inside the host's forward pass: hooks on the projections, there for one pass alone.

The hooks are put in when a pass begins and taken out when it ends, however it ends. So nothing is
left on the model after a run, an error or a Cancel; a second branch that shares the model never
sees them; and whatever else has replaced these forwards by then (another pack's object patch, a
LoRA in bypass mode) is inside ours, so that it works on the edited text as it would on any text.
The host's object patches would stay on the model until another clone of it is loaded, and lie
inside injections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from ..method.edit import GatedEdit, LockedPrompt, PreparedContext, add_values
from .models import Layer

# Packs that build a new context for every layer (attention coupling) would otherwise keep them all.
MAX_CONTEXTS = 16


class Differences:
    """D [J, out] of every layer, kept on the devices and in the dtypes that they were used in."""

    def __init__(self, by_layer: Mapping[str, Tensor]) -> None:
        self.by_layer = dict(by_layer)
        self._moved: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def on(self, path: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """D of the layer at `path`, ready to be added to values of that kind."""
        source = self.by_layer[path]
        if source.device == device and source.dtype == dtype:
            return source
        key = (path, device, dtype)
        if key not in self._moved or source.requires_grad:
            self._moved[key] = source.to(device, dtype)
        return self._moved[key]


class EditedPass:
    """One forward pass: a context is edited when the first layer asks for it, then shared.

    Args:
        prompts: for the global key lock; see `GatedEdit.prepare`.
    """

    def __init__(self, prompts: Sequence[LockedPrompt] = ()) -> None:
        self.prompts = tuple(prompts)
        self._seen: list[tuple[Tensor, GatedEdit, PreparedContext]] = []

    def prepare(self, edit: GatedEdit, context: Tensor) -> PreparedContext:
        """e' and the gates for `context` [..., T, d]. Contexts are told apart by identity."""
        if torch.compiler.is_compiling():
            # A list that grows would be guarded; the compiler finds what layers have in common.
            return edit.prepare(context, self.prompts)
        for seen, by, prepared in self._seen:
            if seen is context and by is edit:
                return prepared
        prepared = edit.prepare(context, self.prompts)
        if len(self._seen) == MAX_CONTEXTS:
            del self._seen[0]
        self._seen.append((context, edit, prepared))
        return prepared


@dataclass(slots=True)  # not frozen: 32 of them are made for each pass, and freezing is slow
class Hook:
    """What one projection needs for one pass; lies on the module, under `HOOK`.

    Attributes:
        original: the forward that was there before.
        current: the pass.
        edit: of this layer.
        difference: D [J, out] of this layer, or of its keys where they are trained.
        fresh: what `original` gives belongs to the caller alone: it is a linear layer's own
            forward. (One that somebody has put in its place may keep what it gave.)
    """

    original: Any
    current: EditedPass
    edit: GatedEdit
    difference: Tensor
    fresh: bool


HOOK = "_perfusion_hook"


# As methods of the module, not as objects of their own: a compiled model then recognises them from
# pass to pass and from layer to layer, and a slider does not compile it anew.
def _edited_keys(module: Any, context: Tensor, *args: Any, **kwargs: Any) -> Any:
    """W_K e' through the layer's own forward."""
    hook: Hook = module._perfusion_hook
    return hook.original(hook.current.prepare(hook.edit, context).keys, *args, **kwargs)


def _trained_keys(module: Any, context: Tensor, *args: Any, **kwargs: Any) -> Any:
    """W_K e' through the layer's own forward, and the learned differences of trained keys."""
    hook: Hook = module._perfusion_hook
    prepared = hook.current.prepare(hook.edit, context)
    keys = hook.original(prepared.keys, *args, **kwargs)
    return add_values(keys, prepared.weights, hook.difference)


def _edited_values(module: Any, context: Tensor, *args: Any, **kwargs: Any) -> Any:
    """W_V e' through the layer's own forward, and the learned differences."""
    hook: Hook = module._perfusion_hook
    prepared = hook.current.prepare(hook.edit, context)
    values = hook.original(prepared.context, *args, **kwargs)
    return add_values(values, prepared.weights, hook.difference, in_place=hook.fresh)


@contextmanager
def edited(
    layers: Mapping[str, Layer],
    edits: Mapping[str, GatedEdit],
    differences: Differences,
    device: torch.device,
    dtype: torch.dtype,
    prompts: Sequence[LockedPrompt] = (),
    key_differences: Differences | None = None,
    current: EditedPass | None = None,
) -> Iterator[EditedPass]:
    """Within this context the layers' projections are edited; afterwards they are as before.

    Args:
        layers: the model's, by path.
        edits: the paths of the layers to edit, each with its edit. Layers that share one (the very
            object) share the edited context.
        differences: of those layers.
        device, dtype: of the contexts that are to be expected. Others work, and cost a copy each.
        prompts: for the global key lock.
        key_differences: of those layers, where concepts have trained keys; None where all keys are
            locked.
        current: the pass, when it is one that began before; a block of it runs again for backward.

    Gives the pass.
    """
    current = current or EditedPass(prompts)
    before: list[tuple[Any, dict[str, Any]]] = []
    try:
        for path, edit in edits.items():
            edit.move_to(device, dtype)
            difference = differences.on(path, device, dtype)
            layer = layers[path]
            for module, forward in ((layer.key, _edited_keys), (layer.value, _edited_values)):
                original = _own(module)
                fresh = isinstance(module, torch.nn.Linear) and _is_own_method(module, original)
                _put(module, forward, Hook(original, current, edit, difference, fresh), before)
            if key_differences is not None:
                trained = key_differences.on(path, device, dtype)
                hook = Hook(_own(layer.key), current, edit, trained, fresh=False)
                _put(layer.key, _trained_keys, hook, before)
        yield current
    finally:
        for module, entries in reversed(before):
            for name in ("forward", HOOK):
                module.__dict__.pop(name, None)
            module.__dict__.update(entries)


def _own(module: Any) -> Any:
    """The module's forward without a hook of ours: a pass within a pass replaces the edit."""
    hook = module.__dict__.get(HOOK)
    return module.forward if hook is None else hook.original


def _is_own_method(module: Any, forward: Any) -> bool:
    return getattr(forward, "__func__", None) is type(module).forward


def _put(module: Any, forward: Any, hook: Hook, before: list[tuple[Any, dict[str, Any]]]) -> None:
    # The instance's own dictionary: torch's __setattr__ takes longer and does the same here.
    own = module.__dict__
    before.append((module, {name: own[name] for name in ("forward", HOOK) if name in own}))
    own[HOOK] = hook
    own["forward"] = MethodType(forward, module)
