"""Marks of pictures: identity and text alignment, each between 0 and 1.

The judge is fixed before any picture is looked at. Of a concept of the world it knows the identity;
of a folder of pictures it does not, and a likeness of its features stands in, under its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from .judge import Judge, Verdict
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
                (q.shown(v.objects, v.background), subject.name in v.concepts)
                for v, q in zip(verdicts, asked, strict=True)
            ],
            dtype=float,
        )


@dataclass(frozen=True)
class Likeness:
    """How like a subject another thing looks, as the judge reads both.

    The judge gives chances of every first paint, second paint and pattern of a thing. The chance
    that two things have the same look is the product, over these three, of the sum of chance times
    chance. Background, companions and size have no part in it. It is put on a scale: 0 for what the
    base model paints for the plain superclass, 1 for the subject's pictures among each other (for a
    single one: 1 is the same picture).

    Attributes:
        own: the readings of the subject in its pictures.
    """

    own: Sequence[Reading]
    floor: float
    ceiling: float

    @classmethod
    def between(cls, plain: Sequence[Reading], own: Sequence[Reading]) -> Likeness:
        """Raises ValueError when the judge does not tell the two apart."""
        if not own:
            raise ValueError(
                "the judge sees none of the things of its world in these pictures: identity cannot "
                "be measured here. Give pictures that the emoji world could have."
            )
        floor = _mean([_same(a, b) for a in plain for b in own])
        others = [_same(a, b) for a in own for b in own if a is not b]
        ceiling = _mean(others) if others else _same(own[0], own[0])
        if ceiling - floor < LEAST_APART:
            raise ValueError(
                "the judge does not tell these pictures from what the model paints for the plain "
                f"superclass word (likeness {ceiling:.2f} among the pictures, {floor:.2f} to plain "
                "ones): identity cannot be measured here. Give pictures that look more alike, or "
                "another superclass word."
            )
        return cls(own, floor, ceiling)

    def __call__(self, things: Sequence[Reading]) -> float:
        """Of a picture: that of the thing in it that is most like the subject; 0 without one."""
        best = max((_mean([_same(one, b) for b in self.own]) for one in things), default=0.0)
        return min(1.0, max(0.0, (best - self.floor) / (self.ceiling - self.floor)))


Reading = tuple[np.ndarray, ...]


def _same(one: Reading, other: Reading) -> float:
    """The chance that two things have the same look."""
    return float(np.prod([a @ b for a, b in zip(one, other, strict=True)]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def readings(verdict: Verdict, superclass: str) -> list[Reading]:
    """Of the things in a picture that may be of a superclass: all, where the judge has no word for
    it."""
    known = superclass in OBJECTS
    return [t.reading for t in verdict.things if not known or t.object == superclass]


class FolderMarking:
    """For a folder of pictures: the judge's reading of the look, and its text alignment.

    A superclass that the world does not have is not looked for in the pictures: the judge has no
    word for it. Background and companions are.

    Args:
        paint: paints prompts with the base model alone.
    """

    identity = "likeness to the pictures (judge's reading; 0: plain superclass)"

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
        likeness = self.of(subject)
        return np.array(
            [
                (q.shown(v.objects, v.background), likeness(readings(v, subject.superclass)))
                for v, q in zip(self.judge.look_at(list(pictures)), asked, strict=True)
            ],
            dtype=float,
        )

    def of(self, subject: Subject) -> Likeness:
        """The likeness to a subject.

        Raises ValueError where the judge does not tell it from its plain superclass.
        """
        if subject.fingerprint not in self._likeness:
            prompts = [q.text for q in self.prompts(subject, subject.superclass)]
            plain, own = (
                [r for v in self.judge.look_at(list(p)) for r in readings(v, subject.superclass)]
                for p in (self.paint(prompts), subject.pictures)
            )
            self._likeness[subject.fingerprint] = Likeness.between(plain, own)
        return self._likeness[subject.fingerprint]
