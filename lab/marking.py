"""Marks of pictures: identity and text alignment, each between 0 and 1.

The judge is fixed before any picture is looked at. Of a concept of the world it knows the identity;
of a folder of pictures it does not, and a likeness of its features stands in, under its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from .judge import Judge
from .prompts import Prompt, concept_prompts
from .subjects import Subject
from .world.vocabulary import OBJECTS

LEAST_APART = 0.1  # of the likeness, between a plain superclass and the subject's own pictures


class Marking(Protocol):
    """Asks for pictures of a subject and marks them."""

    identity: str  # what the mark of identity is, for tables and plots

    def prompts(self, subject: Subject, phrase: str) -> list[Prompt]:
        """The prompts, with `phrase` for the subject."""

    def marks(
        self, subject: Subject, pictures: Sequence[Image.Image], asked: Sequence[Prompt]
    ) -> np.ndarray:
        """(text alignment, identity) of every picture [N, 2]."""


def follows(seen: frozenset[str], background: str, prompt: Prompt) -> bool:
    """Whether a picture shows all that its prompt names beside the identity."""
    return background == prompt.background and prompt.objects <= seen


class WorldMarking:
    """For the world's concepts: the judge says whether it is the concept."""

    identity = "identity (share of pictures)"

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def prompts(self, subject: Subject, phrase: str) -> list[Prompt]:
        return concept_prompts(phrase, subject.superclass)

    def marks(
        self, subject: Subject, pictures: Sequence[Image.Image], asked: Sequence[Prompt]
    ) -> np.ndarray:
        verdicts = self.judge.look_at(list(pictures))
        return np.array(
            [
                (follows(v.objects, v.background, q), subject.name in v.concepts)
                for v, q in zip(verdicts, asked, strict=True)
            ],
            dtype=float,
        )


@dataclass(frozen=True)
class Likeness:
    """How like a subject's pictures another one is, in the judge's features.

    Features [N, f] are taken as directions from `centre`, the mean of what the base model paints
    for the plain superclass in the lab's own prompts. The cosine to the subject's pictures is put
    on a scale: 0 for those plain pictures, 1 for the subject's pictures among each other (for a
    single one: 1 is the same picture).
    """

    centre: np.ndarray
    own: np.ndarray
    floor: float
    ceiling: float

    @classmethod
    def between(cls, plain: np.ndarray, own: np.ndarray) -> Likeness:
        """Raises ValueError when the features do not tell the two apart."""
        centre = plain.mean(axis=0)
        directions = _directions(own, centre)
        floor = float((_directions(plain, centre) @ directions.T).mean())
        among = directions @ directions.T
        others = ~np.eye(len(own), dtype=bool)
        ceiling = float(among[others].mean()) if len(own) > 1 else 1.0
        if ceiling - floor < LEAST_APART:
            raise ValueError(
                "the judge's features do not tell these pictures from what the model paints for "
                f"the plain superclass word (likeness {ceiling:.2f} among the pictures, "
                f"{floor:.2f} to plain ones): identity cannot be measured here. Give pictures "
                "that look more alike, or another superclass word."
            )
        return cls(centre, directions, floor, ceiling)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        cosines = (_directions(features, self.centre) @ self.own.T).mean(axis=1)
        scaled: np.ndarray = np.clip((cosines - self.floor) / (self.ceiling - self.floor), 0, 1)
        return scaled


def _directions(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    away = features - centre
    return away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)


class FolderMarking:
    """For a folder of pictures: likeness in the judge's features, and the judge's text alignment.

    A superclass that the world does not have is not looked for in the pictures: the judge has no
    word for it. Background and companions are.

    Args:
        paint: paints prompts with the base model alone.
    """

    identity = "likeness to the pictures (judge's features; 0: plain superclass)"

    def __init__(
        self, judge: Judge, paint: Callable[[Sequence[str]], Sequence[Image.Image]]
    ) -> None:
        self.judge = judge
        self.paint = paint
        self._likeness: dict[str, Likeness] = {}

    def prompts(self, subject: Subject, phrase: str) -> list[Prompt]:
        unseen = frozenset((subject.superclass,)) - frozenset(OBJECTS)
        return [
            replace(q, objects=q.objects - unseen)
            for q in concept_prompts(phrase, subject.superclass)
        ]

    def marks(
        self, subject: Subject, pictures: Sequence[Image.Image], asked: Sequence[Prompt]
    ) -> np.ndarray:
        likeness = self.of(subject)(features(self.judge, pictures))
        verdicts = self.judge.look_at(list(pictures))
        text = [follows(v.objects, v.background, q) for v, q in zip(verdicts, asked, strict=True)]
        return np.stack([np.array(text, dtype=float), likeness], axis=1)

    def of(self, subject: Subject) -> Likeness:
        """The likeness to a subject.

        Raises ValueError where the judge's features do not tell it from its plain superclass.
        """
        if subject.fingerprint not in self._likeness:
            prompts = [q.text for q in self.prompts(subject, subject.superclass)]
            plain = features(self.judge, self.paint(prompts))
            own = features(self.judge, subject.pictures)
            self._likeness[subject.fingerprint] = Likeness.between(plain, own)
        return self._likeness[subject.fingerprint]


def features(judge: Judge, pictures: Sequence[Image.Image]) -> np.ndarray:
    """What the judge's heads are given for each picture [N, f]."""
    found: list[torch.Tensor] = []
    handle = judge.concepts.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        judge.look_at(list(pictures))
    finally:
        handle.remove()
    return torch.cat(found).float().cpu().numpy()
