"""A stack of concepts in a pass of ComfyUI's model: the wrapper around `apply_model`."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ..concept.concept import Concept
from ..families import FAMILIES
from ..method.edit import GatedEdit
from ..method.settings import MAX_STRENGTH, ConceptSettings
from .broken_numbers import SeenPass
from .concept_entry import ConceptEntry
from .forward_patch import Differences, edited
from .key_lock import LOCKED_PROMPTS
from .models import Layer, compute_dtype, network_layers
from .protocols import BaseModel, Executor, ModelSampling


class StackTensors:
    """The tensors of a stack's concepts, which do not depend on their settings.

    They never change, so clones of a model share them, and so do threads: with several GPUs ComfyUI
    runs passes at the same time, each on a copy of the model.
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
        self.groups = self.family.groups(self.differences.by_layer)
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
            # Of two texts this is the first alone.
            if torch.is_tensor(text) and len(tensors.family.parts) == 1:
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
        group = self.tensors.groups[path]
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
                self.tensors.family.parts,
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
