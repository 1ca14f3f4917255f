"""Validation while a concept trains, and of its checkpoints the best; free of ComfyUI.

Who paints and who scores are given: `comfy` paints with ComfyUI's sampler and scores with CLIP,
the demo has the judge of its world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..concept.concept import Concept
from .settings import ConceptSettings
from .sizes import at_most

# Tried at the best checkpoint, one after the other: what the paper uses, and a little around it.
BIASES = (0.4, 0.5, 0.6, 0.7, 0.8)
TEMPERATURES = (0.1, 0.15, 0.2)

# What is kept for the contact sheet: pictures of this size at most, of about so many looks. A look
# at every step of a long training would otherwise take gigabytes.
SHEET_SIZE = 256
MAX_LOOKS = 32


@dataclass(frozen=True)
class Score:
    """How good some pictures are; higher is better.

    Attributes:
        identity: how like the training pictures they are.
        text: how well they show what their prompts say beside the concept.
    """

    identity: float
    text: float

    @property
    def total(self) -> float:
        """Both at once. A product: neither stands in for the other, and no scale has to be fixed
        for two figures that are not of one (CLIP's similarity to a text is rarely above 0.35)."""
        return max(0.0, self.identity) * max(0.0, self.text)


class Scorer(Protocol):
    """Says how good pictures are."""

    @property
    def name(self) -> str:
        """What a concept's notes call it."""

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Score:
        """Score pictures [N, H, W, 3], 0 to 1, as a whole.

        Args:
            prompts: what each is to show, with the superclass in the concept's place.
        """


Painter = Callable[[Concept, ConceptSettings, Sequence[str]], Tensor]
"""Paints prompts that hold the placeholder: pictures [N, H, W, 3], 0 to 1. The same arguments give
the same pictures, and the noise does not depend on the concept or its settings."""


@dataclass(frozen=True, eq=False)
class ValidationLook:
    """What was seen of a concept at one step.

    Attributes:
        step: how many steps were done.
        concept: as it was then.
        settings: what it was painted with.
        pictures: of the validation prompts [N, h, w, 3], of at most SHEET_SIZE.
        score: None without a scorer.
    """

    step: int
    concept: Concept
    settings: ConceptSettings
    pictures: Tensor
    score: Score | None


class Validation:
    """Paints the validation prompts while a concept trains; with a scorer, knows the best step.

    Args:
        prompts: with "{}" for the concept, at least one.
        paint: see `Painter`.
        scorer: None to look without scoring.
    """

    def __init__(
        self, prompts: Sequence[str], paint: Painter, scorer: Scorer | None = None
    ) -> None:
        self.prompts = tuple(prompts)
        self._paint = paint
        self._scorer = scorer
        self._kept: list[tuple[int, ValidationLook]] = []  # each with its number
        self._count = 0
        self._stride = 1

    @property
    def looks(self) -> list[ValidationLook]:
        """All looks; of more than MAX_LOOKS so many, evenly spread, with the best and the last."""
        return [look for _, look in self._kept]

    @property
    def scores(self) -> bool:
        """Whether it scores what it sees, and so can select."""
        return self._scorer is not None

    @property
    def best(self) -> ValidationLook | None:
        """The look of the highest score, the later of two alike; None where nothing was scored."""
        scored = [look for look in self.looks if look.score is not None]
        return max(scored, key=lambda look: (_total(look), look.step), default=None)

    def look(self, step: int, concept: Concept) -> ValidationLook:
        """Paint, score and remember the concept at one step, with the settings it recommends."""
        look = self._look(step, concept, concept.settings)
        self._kept.append((self._count, look))
        self._count += 1
        if self._count > MAX_LOOKS * self._stride:
            self._stride *= 2
        best = self.best
        self._kept = [
            (number, one)
            for number, one in self._kept
            if number % self._stride == 0 or one is best or one is look
        ]
        return look

    def tuned(
        self, on_look: Callable[[ValidationLook, int, int], None] | None = None
    ) -> Concept | None:
        """The best checkpoint with the bias, then the temperature, that score best on it.

        Args:
            on_look: told of (look, looks done, in all); may raise to stop.

        Returns None where nothing was scored. The concept's training notes say what was found.
        """
        best = chosen = self.best
        if best is None or chosen is None:
            return None
        total = len({*BIASES} - {best.settings.bias}) + len(
            {*TEMPERATURES} - {best.settings.temperature}
        )
        done = 0
        found: dict[str, list[list[float]]] = {}
        for name, values in (("bias", BIASES), ("temperature", TEMPERATURES)):
            tried = {getattr(chosen.settings, name): chosen}
            for value in values:
                if value not in tried:
                    changed: dict[str, Any] = {name: value}
                    settings = replace(chosen.settings, **changed)
                    tried[value] = self._look(best.step, best.concept, settings)
                    done += 1
                    if on_look is not None:
                        on_look(tried[value], done, total)
            # Of two alike the one that is nearer to what is usual.
            chosen = max(
                tried.values(), key=lambda look: (_total(look), look.settings == best.settings)
            )
            found[name] = [_noted(value, look) for value, look in sorted(tried.items())]
        return self._recommended(best, chosen.settings, found)

    def kept(self) -> Concept | None:
        """The best checkpoint as it is, for when there is no time to tune; None without a score."""
        best = self.best
        return None if best is None else self._recommended(best, best.settings, {})

    def _look(self, step: int, concept: Concept, settings: ConceptSettings) -> ValidationLook:
        words = [prompt.replace("{}", concept.placeholder) for prompt in self.prompts]
        pictures = self._paint(concept, settings, words)
        score = None
        if self._scorer is not None:
            texts = [prompt.replace("{}", concept.superclass) for prompt in self.prompts]
            score = self._scorer.score(pictures, texts)
        return ValidationLook(step, concept, settings, at_most(pictures, SHEET_SIZE), score)

    def _recommended(
        self, best: ValidationLook, settings: ConceptSettings, found: dict[str, list[list[float]]]
    ) -> Concept:
        notes = {
            "selected_step": best.step,
            "selected_by": "" if self._scorer is None else self._scorer.name,
            "validation": [_noted(look.step, look) for look in self.looks if look.score],
            **{f"validation_{name}": rows for name, rows in found.items()},
        }
        return replace(
            best.concept,
            bias=settings.bias,
            temperature=settings.temperature,
            training={**best.concept.training, **notes},
        )


def _total(look: ValidationLook) -> float:
    return -torch.inf if look.score is None else look.score.total


def _noted(value: float, look: ValidationLook) -> list[float]:
    """What the file says of a look: the step or setting, identity, text."""
    score = look.score
    return [value] if score is None else [value, round(score.identity, 4), round(score.text, 4)]
