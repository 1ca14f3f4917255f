"""Concepts on ComfyUI's MODEL: one stack, one patch, one key, rebuilt whenever it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ..concept.concept import Concept, check_fits
from ..concept.placeholder import same_word
from ..families import FAMILIES
from ..method.settings import ConceptSettings, KeyLock
from ..method.slider_schedule import SliderSchedule
from .broken_numbers import NumberCheck
from .concept_entry import ConceptEntry, ConceptStack
from .models import ComfyMismatch, detect_family, layers_of
from .prompts import clash
from .protocols import Model
from .stack_patch import StackPatch, StackTensors
from .twins import PromptCarrier

KEY = "perfusion"


def extend_stack(stack: ConceptStack, entries: Iterable[ConceptEntry]) -> ConceptStack:
    """`stack` and `entries`. Raises ComfyMismatch when two concepts share a placeholder."""
    extended = list(stack)
    for entry in entries:
        for other in extended:
            refuse_clash(entry.concept, other.concept)
        extended.append(entry)
    return tuple(extended)


def refuse_clash(one: Concept, other: Concept) -> None:
    """Raises ComfyMismatch when two different concepts answer to the same placeholder."""
    if same_word(one.placeholder, other.placeholder) and one.hash != other.hash:
        raise ComfyMismatch(clash(one.placeholder, other.name, one.name))


def stack_of(model: Model) -> ConceptStack:
    """The concepts on ComfyUI's MODEL."""
    return model.get_attachment(KEY) or ()


def apply_stack(model: Model, entries: Iterable[ConceptEntry]) -> Model:
    """A clone of ComfyUI's MODEL with `entries` added to the concepts that it has.

    The model itself stays as it is. Raises ComfyMismatch or ConceptError when one does not fit.
    """
    entries = tuple(entries)
    stack = extend_stack(stack_of(model), entries)
    if entries:
        family = detect_family(model)
        layers = {path: layer.out for path, layer in layers_of(model, family).items()}
        for entry in entries:
            check_fits(entry.concept, family, layers)
    return _with_stack(model, stack)


def tune(
    model: Model,
    which: str,
    change: Callable[[ConceptSettings], ConceptSettings],
    schedule: SliderSchedule | None = None,
) -> Model:
    """A clone of ComfyUI's MODEL whose concepts' settings went through `change`.

    Args:
        which: the placeholder or the name of one concept; empty for all.
        schedule: slider values that change while sampling; None for those of the settings.

    Raises ComfyMismatch when the model has no concepts, or none of that name.
    """
    stack = stack_of(model)
    if not stack:
        raise ComfyMismatch(
            "This model carries no Perfusion concept to tune. Connect the model output of a "
            "Perfusion Concept Loader or Perfusion Apply Concepts; where that is bypassed, bypass "
            "this node as well."
        )
    wanted = which.strip()
    names = [(entry.concept.placeholder, entry.concept.name) for entry in stack]
    chosen = [not wanted or any(same_word(wanted, name) for name in both) for both in names]
    if not any(chosen):
        known = ", ".join(entry.title for entry in stack)
        raise ComfyMismatch(
            f'This model carries no concept called "{which.strip()}". It carries: {known}. Leave '
            "the field empty to tune all of them."
        )
    tuned = tuple(
        replace(entry, settings=change(entry.settings), schedule=schedule) if meant else entry
        for entry, meant in zip(stack, chosen, strict=True)
    )
    return _with_stack(model, tuned)


def layer_paths(model: Model) -> list[str]:
    """Paths of the cross-attention layers of ComfyUI's MODEL, in the network's order."""
    return list(layers_of(model, detect_family(model)))


def _with_stack(model: Model, stack: ConceptStack) -> Model:
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    before = [patch.tensors for patch in clone.get_wrappers(WrappersMP.APPLY_MODEL, KEY)]
    clone.set_attachments(KEY, stack)
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    clone.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)
    clone.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    active = [entry for entry in stack if entry.may_act]
    _refuse_trained_keys_under_global_lock(active)
    if active:
        concepts = tuple(entry.concept for entry in active)
        # A slider leaves what depends on the concepts alone where it is, on the device.
        tensors = next((t for t in before if t.concepts == concepts), None)
        patch = StackPatch(active, tensors or StackTensors(concepts))
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, patch)
        clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, NumberCheck(patch))
    if any(entry.settings.key_lock is KeyLock.GLOBAL for entry in active):
        carried_by = FAMILIES[active[0].concept.family]
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, PromptCarrier(carried_by))
    return clone


def _refuse_trained_keys_under_global_lock(entries: Iterable[ConceptEntry]) -> None:
    """Raises ComfyMismatch where the keys of one prompt would have two sources."""
    entries = tuple(entries)
    trained = [entry.title for entry in entries if entry.concept.keys]
    locked = [e.title for e in entries if e.settings.key_lock is KeyLock.GLOBAL]
    if trained and locked:
        raise ComfyMismatch(
            f"The concept {trained[0]} was trained with keys of its own, but the key lock of "
            f"{locked[0]} is global, which takes the keys of the whole prompt from the superclass. "
            "Set key_lock to local, or train the concept with key_mode locked."
        )
