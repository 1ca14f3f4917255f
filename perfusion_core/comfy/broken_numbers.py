"""Looks for NaN and infinity once, after a run, and names the concept whose edit made them.

A black picture has many causes. A concept is blamed only if a layer gives finite numbers for the
text as it comes, and NaN or infinity for the text that the concept's edit made of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..method.edit import GatedEdit, LockedPrompt, add_values
from .forward_patch import Differences
from .models import Layer
from .protocols import Executor

if TYPE_CHECKING:
    from .stack_patch import StackPatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeenPass:
    """What the last pass of a run edited, and with what.

    Attributes:
        context: text encodings [..., T, d], as they come to the layers.
        layers, edits: by path.
        differences, keys: of values, and of trained keys where there are any.
        prompts: for the global key lock.
    """

    context: Tensor
    layers: Mapping[str, Layer]
    edits: Mapping[str, GatedEdit]
    differences: Differences
    keys: Differences | None
    prompts: tuple[LockedPrompt, ...]


class NumberCheck:
    """Checks the samples after each run: a wrapper around ComfyUI's samplers."""

    def __init__(self, patch: StackPatch) -> None:
        self._patch = patch

    def __call__(self, executor: Executor, *args: Any, **kwargs: Any) -> Any:
        self._patch.watched = True
        try:
            samples = executor(*args, **kwargs)
            seen = self._patch.seen
            # One question to the device, after all steps.
            if seen is not None and not bool(samples.isfinite().all()):
                culprit = next(_culprits(seen), None)
                if culprit is not None:
                    _tell(f"Perfusion: {culprit}")
            return samples
        finally:
            self._patch.watched, self._patch.seen = False, None


def _culprits(seen: SeenPass) -> Iterator[str]:
    """A sentence for each projection that the edit makes NaN or infinity in."""
    for path, edit in seen.edits.items():
        for kind in ("key", "value"):
            if _is_finite(seen, path, None, kind) and not _is_finite(seen, path, edit, kind):
                alone = [
                    name
                    for number, name in enumerate(edit.names)
                    if edit.settings[number].strength > 0
                    and not _is_finite(seen, path, _alone(edit, number), kind, number)
                ]
                names = " and ".join(alone or edit.names)
                together = "" if alone else " together"
                yield (
                    f"the picture is broken, because the concept {names}{together} makes NaN or "
                    f"infinity in the {kind}s of the layer {path}. Lower its strength, raise its "
                    "bias, or train it again with lower rates."
                )


def _alone(edit: GatedEdit, number: int) -> GatedEdit:
    """The edit of one concept without the others: at strength 0 their NaN would still be NaN."""
    one = slice(number, number + 1)
    return GatedEdit(
        edit.target_inputs[one],
        edit.whitened[one],
        edit.superclasses[one],
        edit.settings[one],
        edit.names[one],
        edit.parts,
    )


@torch.inference_mode()
def _is_finite(
    seen: SeenPass, path: str, edit: GatedEdit | None, kind: str, number: int | None = None
) -> bool:
    """Whether a layer's keys or values of the pass's text are numbers, edited or as they come.

    Args:
        edit: None for the text as it comes.
        kind: "key" or "value".
        number: of the concept that `edit` is of alone; None for all.
    """
    layer, context = seen.layers[path], seen.context
    module = layer.key if kind == "key" else layer.value
    if edit is None:
        return bool(layer.part(kind, module(layer.seen(context))).isfinite().all())
    prepared = edit.prepare(context, seen.prompts)
    text = prepared.keys if kind == "key" else prepared.context
    projected = layer.part(kind, module(layer.seen(text)))
    differences = seen.keys if kind == "key" else seen.differences
    if differences is not None:
        learned = differences.on(path, context.device, context.dtype)
        chosen = learned if number is None else learned[number : number + 1]
        projected = add_values(projected, prepared.weights, chosen)
    return bool(projected.isfinite().all())


def _tell(text: str) -> None:
    """In the log, and on the node that is running."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    logger.warning("%s", text)
    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id, server.client_id)
