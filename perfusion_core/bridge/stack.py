"""Concepts on a host's MODEL: one stack, one patch, one key, rebuilt whenever it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..concept import Concept, check_fits
from ..edit import ConceptSettings, GatedEdit
from ..families import FAMILIES
from .hooks import Differences, edited
from .models import HostMismatch, Layer, detect_family, layers_of, network_layers
from .prompts import clash

KEY = "perfusion"


@dataclass(frozen=True)
class ConceptEntry:
    """One concept and how it is applied: what runs through a PERFUSION_CONCEPT connection."""

    concept: Concept
    settings: ConceptSettings

    @property
    def title(self) -> str:
        """How messages call it."""
        return f'"{self.concept.name}" ({self.concept.placeholder})'


# What runs through a PERFUSION_STACK connection. Immutable, so that branches cannot share state.
ConceptStack = tuple[ConceptEntry, ...]


def recommended(concept: Concept) -> ConceptEntry:
    """The concept with the settings that its file recommends."""
    return ConceptEntry(concept, concept.settings)


def extend_stack(stack: ConceptStack, entries: Iterable[ConceptEntry]) -> ConceptStack:
    """`stack` and `entries`. Raises HostMismatch when two concepts share a placeholder."""
    extended = list(stack)
    for entry in entries:
        for other in extended:
            refuse_clash(entry.concept, other.concept)
        extended.append(entry)
    return tuple(extended)


def refuse_clash(one: Concept, other: Concept) -> None:
    """Raises HostMismatch when two different concepts answer to the same placeholder."""
    same = one.placeholder.casefold() == other.placeholder.casefold()
    if same and one.hash != other.hash:
        raise HostMismatch(clash(one.placeholder, other.name, one.name))


def stack_of(model: Any) -> ConceptStack:
    """The concepts on a host's MODEL."""
    return model.get_attachment(KEY) or ()


def apply_stack(model: Any, entries: Iterable[ConceptEntry]) -> Any:
    """A clone of the host's MODEL with `entries` added to the concepts that it has.

    The model itself stays as it is. Raises HostMismatch or ConceptError when one does not fit.
    """
    entries = tuple(entries)
    stack = extend_stack(stack_of(model), entries)
    if entries:
        family = detect_family(model)
        layers = {path: layer.out for path, layer in layers_of(model, family).items()}
        for entry in entries:
            check_fits(entry.concept, family, layers)
    return _with_stack(model, stack)


def tune(model: Any, which: str, change: Callable[[ConceptSettings], ConceptSettings]) -> Any:
    """A clone of the host's MODEL whose concepts' settings went through `change`.

    Args:
        which: the placeholder or the name of one concept; empty for all.

    Raises HostMismatch when the model has no concepts, or none of that name.
    """
    stack = stack_of(model)
    if not stack:
        raise HostMismatch(
            "This model carries no Perfusion concept to tune. Connect the model output of a "
            "Perfusion Concept Loader or Perfusion Apply Concepts."
        )
    wanted = which.strip().casefold()
    names = [{e.concept.placeholder.casefold(), e.concept.name.casefold()} for e in stack]
    chosen = [not wanted or wanted in own for own in names]
    if not any(chosen):
        known = ", ".join(entry.title for entry in stack)
        raise HostMismatch(
            f'This model carries no concept called "{which.strip()}". It carries: {known}. Leave '
            "the field empty to tune all of them."
        )
    tuned = tuple(
        replace(entry, settings=change(entry.settings)) if meant else entry
        for entry, meant in zip(stack, chosen, strict=True)
    )
    return _with_stack(model, tuned)


def _with_stack(model: Any, stack: ConceptStack) -> Any:
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    clone.set_attachments(KEY, stack)
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    active = [entry for entry in stack if entry.settings.strength > 0]
    if active:
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, StackPatch(active))
    return clone


class StackPatch:
    """Edits a host's model during its forward pass: the wrapper around `apply_model`."""

    def __init__(self, entries: Iterable[ConceptEntry]) -> None:
        entries = list(entries)
        concepts = [entry.concept for entry in entries]
        self.edit = GatedEdit(
            torch.stack([c.target_input for c in concepts]),
            torch.stack([c.whitened_target for c in concepts]),
            torch.stack([c.superclass_encoding for c in concepts]),
            [entry.settings for entry in entries],
            [entry.title for entry in entries],
        )
        self.differences = Differences(
            {path: torch.stack([c.values[path] for c in concepts]) for path in concepts[0].values}
        )
        self._family = FAMILIES[concepts[0].family]
        self._network: Any = None
        self._layers: dict[str, Layer] = {}

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        with edited(self._layers_of(executor.class_obj), self.edit, self.differences):
            return executor(*args, **kwargs)

    def _layers_of(self, base: Any) -> dict[str, Layer]:
        # `base` is the host's model object, whose network may be swapped between runs.
        if self._network is not base.diffusion_model:
            self._layers = network_layers(base.diffusion_model, self._family)
            self._network = base.diffusion_model
        return self._layers
