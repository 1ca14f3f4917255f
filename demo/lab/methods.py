"""What the lab asks of a way to learn a concept; and Perfusion, as the nodes run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perfusion_core.bridge import add_concepts, apply_stack
from perfusion_core.concept_file import load_concept, save_concept
from perfusion_core.training import TrainingSettings

from ..studio import Studio, entry_of
from .subjects import Subject

# As `make demo` trains.
STEPS, BATCH, SEED = 200, 8, 1

Pair = tuple[Any, Any]
"""A host's MODEL and CLIP."""


@dataclass(frozen=True)
class Method(ABC):
    """A way to learn concepts. Its fields say how it trains; a file holds what it learned.

    What is measured is always what the file holds, so that a resumed lab measures the same.
    """

    steps: int = STEPS

    @property
    def key(self) -> dict[str, Any]:
        """Everything that decides what is learned, for the cache."""
        return {"method": type(self).__name__, **asdict(self)}

    def phrase(self, subject: Subject) -> str:
        """What stands for the subject in a prompt."""
        return subject.placeholder

    @abstractmethod
    def train(self, studio: Studio, subject: Subject, file: Path) -> None:
        """Learn the subject into a file."""

    @abstractmethod
    def apply(
        self,
        studio: Studio,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
        **use: Any,
    ) -> Pair:
        """MODEL and CLIP that know what was learned, one subject or several.

        Args:
            prompts: that will be sampled.
            use: the method's own knobs.
        """


@dataclass(frozen=True)
class Perfusion(Method):
    """This pack's training, and its edit of the attention.

    Attributes:
        training: changes of the default `TrainingSettings`.
        pictures: how many training pictures; 0 for all.
        masked: whether the loss is weighted by where the concept is.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    pictures: int = 0
    masked: bool = False

    def settings(self) -> TrainingSettings:
        common = {"steps": self.steps, "batch_size": BATCH, "seed": SEED}
        return TrainingSettings(**{**common, **self.training})

    def train(self, studio: Studio, subject: Subject, file: Path) -> None:
        chosen = subject.first(self.pictures)
        if self.masked and chosen.masks is None:
            raise ValueError(f"nobody knows where {subject.name} is in its pictures: no masks")
        result = studio.learn(
            chosen.pictures,
            subject.superclass,
            self.settings(),
            chosen.masks if self.masked else None,
        )
        save_concept(result.concept, file)

    def apply(
        self,
        studio: Studio,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
        **use: Any,
    ) -> Pair:
        entries = [entry_of(load_concept(file), **use) for _, file in learned]
        locks = [entry.settings.key_lock for entry in entries]
        clip = add_concepts(studio.clip, [entry.concept for entry in entries], locks)
        return apply_stack(studio.model, entries), clip
