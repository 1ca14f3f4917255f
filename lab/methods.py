"""What the lab asks of a way to learn a concept; and Perfusion, as the nodes run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from perfusion_core.comfy.pictures import thumbnail
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.method.training_settings import TrainingSettings

from .groups import individual_of
from .local_comfyui import LocalComfyUI, entry_of
from .recipe import BATCH, RATES, SEED, STEPS
from .subjects import Subject

Pair = tuple[Any, Any]
"""A MODEL and a CLIP."""


@dataclass(frozen=True)
class Method(ABC):
    """A way to learn concepts. Its fields say how it trains; a file holds what it learned.

    What is measured is always what the file holds, so that a resumed lab measures the same.
    """

    title: ClassVar[str]  # for tables and plots

    steps: int = STEPS

    @property
    def key(self) -> dict[str, Any]:
        """Everything that decides what is learned, for the cache."""
        return {"method": type(self).__name__, "batch": BATCH, "seed": SEED, **asdict(self)}

    def phrase(self, subject: Subject) -> str:
        """What stands for the subject in a prompt."""
        return subject.placeholder

    @abstractmethod
    def train(self, comfyui: LocalComfyUI, subject: Subject, file: Path) -> None:
        """Learn the subject into a file."""

    @abstractmethod
    def apply(
        self,
        comfyui: LocalComfyUI,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
        **use: Any,
    ) -> Pair:
        """MODEL and CLIP that know what was learned, one subject or several.

        Args:
            prompts: that will be sampled.
            use: the method's own knobs.
        """


def recipe(steps: int, **changes: Any) -> TrainingSettings:
    """The demo's settings, with changes."""
    common = {"steps": steps, "batch_size": BATCH, "seed": SEED, **RATES}
    return TrainingSettings(**{**common, **changes})


@dataclass(frozen=True)
class Words(Method):
    """No concept at all: the look is described in words. What the model itself can paint, and so
    what a concept can reach at most. For concepts of the world."""

    title = "described in words"

    steps: int = 0

    def phrase(self, subject: Subject) -> str:
        individual = individual_of(subject.name)
        return f"{individual.look.words()} {individual.object}"

    def train(self, comfyui: LocalComfyUI, subject: Subject, file: Path) -> None:
        file.touch()

    def apply(
        self,
        comfyui: LocalComfyUI,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
    ) -> Pair:
        return comfyui.model, comfyui.clip


@dataclass(frozen=True)
class Perfusion(Method):
    """This pack's training, and its edit of the attention.

    Attributes:
        training: changes of the demo's `TrainingSettings`.
        pictures: how many training pictures; 0 for all.
        masked: whether the loss is weighted by where the concept is.
    """

    title = "Perfusion"

    training: Mapping[str, Any] = field(default_factory=dict)
    pictures: int = 0
    masked: bool = False

    @property
    def key(self) -> dict[str, Any]:
        return {**super().key, "training": asdict(self.settings())}

    def settings(self) -> TrainingSettings:
        return recipe(self.steps, **self.training)

    def train(self, comfyui: LocalComfyUI, subject: Subject, file: Path) -> None:
        chosen = subject.first(self.pictures)
        if self.masked and chosen.masks is None:
            raise ValueError(f"nobody knows where {subject.name} is in its pictures: no masks")
        result = comfyui.learn(
            chosen.groups(comfyui, self.masked), subject.superclass, self.settings()
        )
        # With the picture that the node puts into the file, whose bytes count.
        pixels = torch.from_numpy(np.array(subject.pictures[0])).movedim(-1, 0) / 255
        save_concept(replace(result.concept, preview=thumbnail(pixels)), file)

    def apply(
        self,
        comfyui: LocalComfyUI,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
        **use: Any,
    ) -> Pair:
        entries = [
            entry_of(replace(load_concept(file), placeholder=subject.placeholder), **use)
            for subject, file in learned
        ]
        locks = [entry.settings.key_lock for entry in entries]
        clip = add_concepts(comfyui.clip, [entry.concept for entry in entries], locks)
        return apply_stack(comfyui.model, entries), clip


@dataclass(frozen=True)
class Templated(Perfusion):
    """Perfusion as the paper trains it: templates around the placeholder, and no captions that say
    what else each picture shows."""

    def train(self, comfyui: LocalComfyUI, subject: Subject, file: Path) -> None:
        super().train(comfyui, replace(subject, captions=()), file)
