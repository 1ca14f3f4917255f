"""What a session is asked to learn, whom it tells of its progress, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..comfy.backbone import CHECKPOINTING
from ..comfy.scores import AUTO
from ..concept.concept import Concept
from ..method.covariance import Covariance
from ..method.training_settings import TrainingSettings
from ..method.training_state import TrainingState
from ..method.validation import ValidationLook


class Snapshots(Protocol):
    """Keeps a training's state, so that one that was killed goes on where it was.

    A snapshot that fails is noted and does not end the training.
    """

    def load(self) -> TrainingState | None:
        """The state to go on from; None to begin."""

    def due(self, done: int) -> bool:
        """Whether to save one after so many steps."""

    def save(self, state: TrainingState) -> None:
        """Keep a state in place of the one before it."""


@dataclass(frozen=True)
class Plan:
    """What is to be learned, and what is done beside it.

    Attributes:
        placeholder: the new word. superclass: the ordinary word for what it is.
        settings: of the training itself.
        covariance: None for that of the built-in captions.
        start: a concept to go on from.
        resolution: side of the square whose area the pictures are brought to; 0 for the family's.
        flip: learn from the mirror images too.
        checkpointing: of `CHECKPOINTING`.
        look_every: paint validation pictures every so many steps; 0 for never.
        prompts: of these pictures, a line each, with the placeholder; "" for built-in ones.
        select: score them, and give out the best step instead of the last.
        scorer: the CLIP model that scores.
        save_every: save a copy every so many steps; 0 for never.
        keep: whether a Cancel ends the training with what was learned, and not the whole run.
        snapshots: keep the training's state on the way, and go on from it. What validation saw is
            not in it, so not together with select.
    """

    placeholder: str
    superclass: str
    settings: TrainingSettings
    covariance: Covariance | None = None
    start: Concept | None = None
    resolution: int = 0
    flip: bool = False
    checkpointing: str = CHECKPOINTING[0]
    look_every: int = 0
    prompts: str = ""
    select: bool = False
    scorer: str = AUTO
    save_every: int = 0
    keep: bool = False
    snapshots: Snapshots | None = None


class Progress(Protocol):
    """Is called as a training goes on. An error that it raises is noted and does not end the
    training; a Cancel does."""

    def step(self, done: int, total: int, loss: float) -> None:
        """A step is done."""

    def painting(self, done: int, total: int) -> None:
        """Validation pictures are to be painted, which takes a while."""

    def look(self, look: ValidationLook, done: int, total: int) -> None:
        """They are painted; of so many steps."""

    def tried(self, look: ValidationLook, done: int, total: int) -> None:
        """So many of all settings of the best step were tried."""


@dataclass(frozen=True, eq=False)
class Learned:
    """What a session gives.

    Attributes:
        concept: with the first picture as its preview; of the last step, or of the best.
        losses: of every step that ran.
        finished: whether all steps ran; False after a Cancel that keeps.
        looks: the validation pictures, each with its step.
        prompts: what they show, with the placeholder.
        sizes: of the training pictures, for people.
        notes: what is to be said beside it, such as what failed on the way without ending it.
    """

    concept: Concept
    losses: Sequence[float]
    finished: bool
    looks: Sequence[ValidationLook]
    prompts: Sequence[str]
    sizes: str
    notes: Sequence[str] = field(default_factory=tuple)
