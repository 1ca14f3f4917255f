"""Training a concept: the loop, which knows no ComfyUI.

What a model must offer is the protocol `Backbone` of `backbone.py`. Learned are the placeholder's
token embeddings and, per layer, the value difference D (arXiv 2305.01644); the model's own weights
never change. For comparison, keys can be learned as values are (`key_mode`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from typing import Any

import torch

from ..concept.concept import Concept, check_fits, check_words
from ..families import FAMILIES
from .backbone import Backbone
from .batches import PictureGroup, TrainingError, batches, captions_of
from .covariance import Covariance
from .learner import Learner
from .training_settings import TrainingSettings
from .training_state import TrainingState


class Training:
    """One training, step by step: whoever runs it owns the loop, and the model between the steps.

    Iterating runs the steps that are left, one at a time, and gives the loss of each. The same seed
    on the same machine gives the same concept, bit for bit, whatever happens between the steps.

    Args:
        backbone: the model.
        groups: the pictures; more than one group when they differ in size.
        placeholder: the new word, such as "teddy*".
        superclass: the ordinary word for what it is, such as "teddy".
        covariance: of the model's text encodings.
        settings: how to train.
        start: a concept to go on from, of the same model family and superclass.

    Raises ConceptError for words that cannot name a concept, TrainingError for unusable pictures or
    masks and a `start` that does not fit; a step raises it when the loss is no longer a number.

    Attributes:
        losses: of the steps so far.
    """

    def __init__(
        self,
        backbone: Backbone,
        groups: Sequence[PictureGroup],
        *,
        placeholder: str,
        superclass: str,
        covariance: Covariance,
        settings: TrainingSettings,
        start: Concept | None = None,
    ) -> None:
        check_words(placeholder, superclass)
        if start is not None:
            _check_start(start, backbone, superclass, settings)
        self.settings = settings
        self.losses: list[float] = []
        self._groups = tuple(groups)
        self._before = _steps_done(start)
        # Going on, it sees other noise than it has seen, not the same once more.
        seed = (settings.seed + self._before) % 2**64
        with _for_autograd():
            drawn = batches(self._groups, placeholder, superclass, settings.batch_size, seed)
            # What is wrong with the pictures comes up before anything is encoded.
            self._batches = chain([next(drawn)], drawn)
            self._learner = Learner(
                backbone, placeholder, superclass, covariance, settings, start, captions_of(groups)
            )

    @property
    def finished(self) -> bool:
        """Whether all steps have run."""
        return len(self.losses) == self.settings.steps

    def __iter__(self) -> Iterator[float]:
        while not self.finished:
            yield self.step()

    def step(self) -> float:
        """One more step; its loss."""
        with _for_autograd():
            self.losses.append(self._learner.step(next(self._batches)))
        return self.losses[-1]

    @property
    def state(self) -> TrainingState:
        """All that a training with the same arguments needs to go on from here."""
        tensors, scaler = self._learner.state()
        return TrainingState(tensors, tuple(self.losses), scaler)

    def restore(self, state: TrainingState) -> None:
        """Go on from the state of a training with the same arguments, to the same concept.

        On the same machine it is the same bit for bit. Before the first step only. Raises
        TrainingError for the state of another training.
        """
        if self.losses:
            raise TrainingError("a training that has begun cannot go on from another's state")
        if len(state.losses) > self.settings.steps:
            raise TrainingError(
                f"the state to go on from is of step {len(state.losses)}, and there are "
                f"{self.settings.steps} steps: it is of another training. Begin anew, without it."
            )
        with _for_autograd():
            self._learner.restore(state.tensors, state.scaler)
            for _ in state.losses:  # the generator is then where it was
                next(self._batches)
        self.losses = list(state.losses)

    @property
    def concept(self) -> Concept:
        """What was learned so far: the concept as it is now."""
        recent = self.losses[-max(1, self.settings.steps // 10) :]
        with _for_autograd():
            return self._learner.concept(
                {
                    **asdict(self.settings),
                    "images": sum(map(len, self._groups)),
                    "masked": any(group.masks is not None for group in self._groups),
                    "steps_done": self._before + len(self.losses),
                    "loss": sum(recent) / len(recent) if recent else None,
                }
            )


def train(backbone: Backbone, groups: Sequence[PictureGroup], **options: Any) -> Training:
    """A `Training` of these, after all its steps."""
    training = Training(backbone, groups, **options)
    for _ in training:
        pass
    return training


@contextmanager
def _for_autograd() -> Iterator[None]:
    """The caller may run in inference mode, whose tensors autograd refuses."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _check_start(
    start: Concept, backbone: Backbone, superclass: str, settings: TrainingSettings
) -> None:
    """Raises TrainingError or ConceptError unless training can go on from `start`."""
    check_fits(start, FAMILIES[backbone.family], backbone.layers)
    if start.superclass != superclass:
        raise TrainingError(
            f'the concept to go on from, "{start.name}", has the superclass "{start.superclass}", '
            f'not "{superclass}": its values start from that word. Use its superclass.'
        )
    if settings.vectors not in (0, start.vectors):
        raise TrainingError(
            f'the concept to go on from, "{start.name}", has {start.vectors} vectors, but '
            f"{settings.vectors} are asked for: set vectors to 0"
        )
    if start.keys and settings.key_mode == "locked":
        raise TrainingError(
            f'the concept to go on from, "{start.name}", was trained with keys of its own, which '
            'would be lost: set key_mode to "trained"'
        )


def _steps_done(start: Concept | None) -> int:
    """Steps behind a concept to go on from; 0 where its file says nothing that can be read."""
    done = start.training.get("steps_done") if start is not None else None
    return done if isinstance(done, int) else 0
