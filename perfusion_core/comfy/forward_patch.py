"""The edit inside ComfyUI's forward pass: hooks on the projections, there for one pass alone.

The hooks are put in when a pass begins and taken out when it ends, however it ends. So nothing is
left on the model after a run, an error or a Cancel; a second branch that shares the model never
sees them; and whatever else has replaced these forwards by then (another pack's object patch, a
LoRA in bypass mode) is inside ours, so that it works on the edited text as it would on any text.
ComfyUI's object patches would stay on the model until another clone of it is loaded, and lie
inside injections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from ..method.edit import GatedEdit, LockedPrompt, PreparedContext, add_values
from .forward_swap import ForwardSwap
from .models import Before, Layer

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


@dataclass(frozen=True)
class Text:
    """What came to the part of a network before its layers, and what it gave.

    Attributes:
        encoding: e [..., t, d].
        output: what it gave for that [..., t, width].
        through: the part's own forward.
        before: the part.
    """

    encoding: Tensor
    output: Tensor
    through: Any
    before: Before
    _rows: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)

    def rows(self, context: Tensor) -> Tensor | None:
        """e of the rows of `context` [..., T, width]; None when it is of another text.

        The very same tensor for the same context, which the layers of a pass share.
        """
        if torch.compiler.is_compiling():
            return self.before.text_of(context, self.encoding, self.output)
        for seen, rows in self._rows:
            if seen is context:
                return rows
        self._rows[:] = [(context, self.before.text_of(context, self.encoding, self.output))]
        return self._rows[0][1]


class EditedPass:
    """One forward pass: a context is edited when the first layer asks for it, then shared.

    Args:
        prompts: for the global key lock; see `GatedEdit.prepare`.
    """

    def __init__(self, prompts: Sequence[LockedPrompt] = ()) -> None:
        self.prompts = tuple(prompts)
        self.text: Text | None = None
        self._seen: list[tuple[Tensor, GatedEdit, PreparedContext]] = []

    def prepare(self, edit: GatedEdit, context: Tensor) -> PreparedContext:
        """e' and the gates for `context` [..., T, d]. Contexts are told apart by identity.

        Where the network has a part before its layers, `context` is what that part gave, and e' is
        what it gives for the edited text.
        """
        rows = None if self.text is None else self.text.rows(context)
        text = None if rows is None else self.text
        known = context if rows is None else rows
        if torch.compiler.is_compiling():
            # A list that grows would be guarded; the compiler finds what layers have in common.
            return self._prepared(edit, known, text, context)
        for seen, by, prepared in self._seen:
            if seen is known and by is edit:
                return prepared
        prepared = self._prepared(edit, known, text, context)
        if len(self._seen) == MAX_CONTEXTS:
            del self._seen[0]
        self._seen.append((known, edit, prepared))
        return prepared

    def _prepared(
        self, edit: GatedEdit, encoding: Tensor, text: Text | None, context: Tensor
    ) -> PreparedContext:
        prepared = edit.prepare(encoding, self.prompts)
        if text is None:
            return prepared

        def seen(edited: Tensor) -> Tensor:
            # Some networks have the rows of a whole batch one after the other.
            made = text.before.context_of(edited, encoding, text.through, context)
            return made.reshape(context.shape)

        values = seen(prepared.context)
        keys = values if prepared.keys is prepared.context else seen(prepared.keys)
        weights = prepared.weights.reshape(*context.shape[:-1], -1)
        return PreparedContext(values, keys, weights)


@dataclass(slots=True)  # not frozen: 32 of them are made for each pass, and freezing is slow
class Hook:
    """What one projection needs for one pass; lies on the module, under `HOOK`.

    Attributes:
        original: the forward that was there before.
        current: the pass.
        edit: of this layer; of what is before the layers, that part (`Before`).
        values, keys: D [J, out] of this layer; None for what the projection does not give, and for
            the keys while they are locked.
        fresh: what `original` gives belongs to the caller alone: it is a linear layer's own
            forward. (One that somebody has put in its place may keep what it gave.)
    """

    original: Any
    current: EditedPass
    edit: Any
    values: Tensor | None
    keys: Tensor | None
    fresh: bool


HOOK = "_perfusion_hook"


# As methods of the module, not as objects of their own: a compiled model then recognises them from
# pass to pass and from layer to layer, and a slider does not compile it anew.
def _edited_keys(module: Any, context: Tensor, *args: Any, **kwargs: Any) -> Any:
    """W_K e' through the layer's own forward; with the learned differences of trained keys."""
    hook: Hook = module._perfusion_hook
    prepared = hook.current.prepare(hook.edit, context)
    keys = hook.original(prepared.keys, *args, **kwargs)
    return _with(keys, prepared, hook.keys)


def _edited_values(module: Any, context: Tensor, *args: Any, **kwargs: Any) -> Any:
    """W_V e' through the layer's own forward, and the learned differences."""
    hook: Hook = module._perfusion_hook
    prepared = hook.current.prepare(hook.edit, context)
    values = hook.original(prepared.context, *args, **kwargs)
    return _with(values, prepared, hook.values, in_place=hook.fresh)


def _edited_both(module: Any, context: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Both of one fused projection, keys first."""
    hook: Hook = module._perfusion_hook
    prepared = hook.current.prepare(hook.edit, context)
    keys, values = hook.original(prepared.context, *args, **kwargs).chunk(2, dim=-1)
    if prepared.keys is not prepared.context:
        keys = hook.original(prepared.keys, *args, **kwargs).chunk(2, dim=-1)[0]
    return torch.cat(
        [_with(keys, prepared, hook.keys), _with(values, prepared, hook.values)], dim=-1
    )


def _text_read(module: Any, context: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The part before the layers as it is; the pass learns what came to it."""
    hook: Hook = module._perfusion_hook
    output = hook.original(context, *args, **kwargs)
    hook.current.text = Text(context, output, hook.original, hook.edit)
    return output


def _with(
    projected: Tensor, prepared: PreparedContext, difference: Tensor | None, in_place: bool = False
) -> Tensor:
    if difference is None:
        return projected
    return add_values(projected, prepared.weights, difference, in_place=in_place)


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
    with ForwardSwap() as swap:
        for before in {id(layers[p].before): layers[p].before for p in edits}.values():
            if before is not None:
                _put(swap, before.module, _text_read, current, before, None, None)
        for path, edit in edits.items():
            edit.move_to(device, dtype)
            values = differences.on(path, device, dtype)
            keys = None if key_differences is None else key_differences.on(path, device, dtype)
            layer = layers[path]
            if layer.fused:
                _put(swap, layer.key, _edited_both, current, edit, values, keys)
            else:
                _put(swap, layer.key, _edited_keys, current, edit, None, keys)
                _put(swap, layer.value, _edited_values, current, edit, values, None)
        yield current


def _put(
    swap: ForwardSwap,
    module: Any,
    forward: Any,
    current: EditedPass,
    edit: GatedEdit | Before,
    values: Tensor | None,
    keys: Tensor | None,
) -> None:
    before: Hook | None = module.__dict__.get(HOOK)
    # A pass within a pass replaces the edit.
    original = module.forward if before is None else before.original
    fresh = isinstance(module, torch.nn.Linear) and _is_own_method(module, original)
    hook = Hook(original, current, edit, values, keys, fresh)
    swap.put(module, **{HOOK: hook, "forward": MethodType(forward, module)})


def _is_own_method(module: Any, forward: Any) -> bool:
    return getattr(forward, "__func__", None) is type(module).forward
