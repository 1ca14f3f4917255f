"""Concepts on ComfyUI's MODEL: one stack, one patch, one key, rebuilt whenever it changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ..concept.concept import Concept, check_fits
from ..concept.placeholder import same_word
from ..families import FAMILIES
from ..method.edit import GatedEdit
from ..method.settings import MAX_STRENGTH, ConceptSettings, KeyLock
from ..method.slider_schedule import SliderSchedule
from .broken_numbers import NumberCheck, SeenPass
from .forward_patch import Differences, edited
from .key_lock import LOCKED_PROMPTS
from .models import ComfyMismatch, Layer, compute_dtype, detect_family, layers_of, network_layers
from .prompts import clash
from .protocols import BaseModel, Executor, Model, ModelSampling
from .twins import PromptCarrier

KEY = "perfusion"


@dataclass(frozen=True)
class ConceptEntry:
    """One concept and how it is applied: what runs through a PERFUSION_CONCEPT connection."""

    concept: Concept
    settings: ConceptSettings
    # Slider values that change while sampling; None: those of the settings.
    schedule: SliderSchedule | None = None

    @property
    def title(self) -> str:
        """How messages call it."""
        return f'"{self.concept.name}" ({self.concept.placeholder})'

    @property
    def may_act(self) -> bool:
        """Whether it is more than the untouched model at some time of the sampling."""
        return self.settings.strength > 0 or self.schedule is not None

    def settings_at(self, sigma: float) -> ConceptSettings:
        """The settings at a noise level."""
        if self.schedule is None:
            return self.settings
        return self.schedule.at(sigma).put_into(self.settings)


# What runs through a PERFUSION_STACK connection. Immutable, so that branches cannot share state.
ConceptStack = tuple[ConceptEntry, ...]


def recommended(concept: Concept) -> ConceptEntry:
    """The concept with the settings that its file recommends."""
    return ConceptEntry(concept, concept.settings)


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


def edit_of(entries: Sequence[ConceptEntry]) -> GatedEdit:
    """The edit of all of `entries`, to ask for similarities and gates; there must be one."""
    concepts = [entry.concept for entry in entries]
    return GatedEdit(
        torch.stack([c.target_input for c in concepts]),
        torch.stack([c.whitened_target for c in concepts]),
        torch.stack([c.superclass_encoding for c in concepts]),
        [entry.settings for entry in entries],
        [entry.title for entry in entries],
    )


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
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, PromptCarrier())
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


class StackTensors:
    """What a stack needs of its concepts, whatever their settings; never changed, so shared.

    Shared by passes in several threads as well: with several GPUs ComfyUI runs one each, on a copy
    of the model each.
    """

    def __init__(self, concepts: tuple[Concept, ...]) -> None:
        self.concepts = concepts
        self.inputs = torch.stack([c.target_input for c in concepts])
        self.whitened = torch.stack([c.whitened_target for c in concepts])
        self.superclasses = torch.stack([c.superclass_encoding for c in concepts])
        self.differences = Differences(
            {path: torch.stack([c.values[path] for c in concepts]) for path in concepts[0].values}
        )
        self.keys = _key_differences(concepts)
        self.family = FAMILIES[concepts[0].family]
        self._layers: weakref.WeakKeyDictionary[Any, dict[str, Layer]] = weakref.WeakKeyDictionary()
        self._lock = Lock()

    def layers_of(self, base: BaseModel) -> dict[str, Layer]:
        """The layers of ComfyUI's model object, whose network may be swapped between runs."""
        network = base.diffusion_model
        with self._lock:
            if network not in self._layers:
                self._layers[network] = network_layers(network, self.family)
            return self._layers[network]


def _key_differences(concepts: Iterable[Concept]) -> Differences | None:
    """D^K of concepts with trained keys, 0 for the others; None when no concept has any."""
    concepts = tuple(concepts)
    if not any(concept.keys for concept in concepts):
        return None
    none = {path: torch.zeros_like(value) for path, value in concepts[0].values.items()}
    return Differences(
        {path: torch.stack([(c.keys or none)[path] for c in concepts]) for path in none}
    )


class StackPatch:
    """Edits ComfyUI's model during its forward pass: the wrapper around `apply_model`.

    Attributes:
        watched: whether a `NumberCheck` wants to know of the passes.
        seen: the last one, while it does.
    """

    def __init__(self, entries: Iterable[ConceptEntry], tensors: StackTensors) -> None:
        self._entries = tuple(entries)
        self._moving = any(entry.schedule is not None for entry in self._entries)
        self._settings = tuple(entry.settings for entry in self._entries)
        self.tensors = tensors
        self._by_strengths: dict[tuple[float, ...], GatedEdit] = {}
        self._by_activity: dict[tuple[bool, ...], dict[str, GatedEdit]] = {}
        self._lock = Lock()  # of all of these; see `StackTensors`
        self.watched = False
        self.seen: SeenPass | None = None

    def __call__(self, executor: Executor, *args: Any, **kwargs: Any) -> Any:
        base = executor.class_obj
        options = _transformer_options(args, kwargs)
        with self._lock:
            self._follow(options.get("sigmas"))
            edits = self._edits(self._activity(base.model_sampling, options.get("sigmas")))
        tensors, layers, dtype = self.tensors, self.tensors.layers_of(base), compute_dtype(base)
        prompts = options.get(LOCKED_PROMPTS, ())
        if self.watched:
            text = args[3] if len(args) > 3 else kwargs.get("c_crossattn")
            if torch.is_tensor(text):
                self.seen = SeenPass(
                    text.to(dtype), layers, edits, tensors.differences, tensors.keys, prompts
                )
        with edited(
            layers,
            edits,
            tensors.differences,
            device=args[0].device,
            dtype=dtype,
            prompts=prompts,
            key_differences=tensors.keys,
        ):
            return executor(*args, **kwargs)

    def _follow(self, sigmas: Tensor | None) -> None:
        """Takes the settings of this step, where sliders move while sampling."""
        if not self._moving or sigmas is None:
            return
        sigma = float(sigmas.max())
        settings = tuple(entry.settings_at(sigma) for entry in self._entries)
        if settings != self._settings:
            self._settings = settings
            self._by_strengths.clear()
            self._by_activity.clear()

    def _activity(self, sampling: ModelSampling, sigmas: Tensor | None) -> tuple[bool, ...]:
        """Which concepts act at this step, by ComfyUI's own reading of start and end."""
        settings = self._settings
        always = [s.start <= 0 and s.end >= 1 for s in settings]
        if all(always) or sigmas is None:
            return (True,) * len(settings)
        # Only now: on a GPU, reading the number waits for it.
        sigma = float(sigmas.max())
        return tuple(
            anytime
            or sampling.percent_to_sigma(s.end) <= sigma <= sampling.percent_to_sigma(s.start)
            for s, anytime in zip(settings, always, strict=True)
        )

    def _edits(self, active: tuple[bool, ...]) -> dict[str, GatedEdit]:
        """Path of each layer that is to be edited -> its edit, while these concepts act."""
        if active not in self._by_activity:
            edits = {path: self._edit(active, path) for path in self.tensors.differences.by_layer}
            self._by_activity[active] = {path: e for path, e in edits.items() if e.active}
        return self._by_activity[active]

    def _edit(self, active: tuple[bool, ...], path: str) -> GatedEdit:
        """The edit of one layer; the very same for all layers of the same strengths."""
        group = self.tensors.family.group(path)
        settings = [
            _at_layer(own, path, group, acts)
            for own, acts in zip(self._settings, active, strict=True)
        ]
        strengths = tuple(s.strength for s in settings)
        if strengths not in self._by_strengths:
            self._by_strengths[strengths] = GatedEdit(
                self.tensors.inputs,
                self.tensors.whitened,
                self.tensors.superclasses,
                settings,
                [entry.title for entry in self._entries],
            )
        return self._by_strengths[strengths]


def _at_layer(settings: ConceptSettings, path: str, group: str, acts: bool) -> ConceptSettings:
    weight = settings.layers.of(path, group) if acts else 0.0
    return replace(settings, strength=min(settings.strength * weight, MAX_STRENGTH))


def _transformer_options(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's `transformer_options` among the arguments of its `apply_model`."""
    # x, t, c_concat, c_crossattn, control, transformer_options
    options = args[5] if len(args) > 5 else kwargs.get("transformer_options")
    return options or {}
