"""Prompts, what their pictures must show, and the shares of the pictures that do.

Prompts name backgrounds (red, orange, green, gray) and companions that no training picture shows.
Identity: the judge sees the concept. Text alignment: it sees everything else that the prompt names,
that is the background, the companion, and an object of the concept's superclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .judge import Verdict
from .world.vocabulary import Individual


@dataclass(frozen=True)
class Prompt:
    """A prompt and what its pictures must show."""

    text: str
    objects: frozenset[str]
    background: str


def concept_prompts(placeholder: str, superclass: str) -> list[Prompt]:
    """Eight prompts for one concept, alone and beside things, in first and in second place."""
    templates = (
        ("a photo of a {} on a green background", (), "green"),
        ("a picture of a {} on a red background", (), "red"),
        ("a photo of a {} next to a frog on a orange background", ("frog",), "orange"),
        ("a photo of a {} next to a rocket on a gray background", ("rocket",), "gray"),
        ("a photo of a cactus next to a {} on a red background", ("cactus",), "red"),
        ("a photo of a mushroom next to a {} on a green background", ("mushroom",), "green"),
        ("a photo of a {} wearing a hat on a orange background", ("hat",), "orange"),
        ("a photo of a {} in a house on a gray background", ("house",), "gray"),
    )
    return [
        Prompt(text.format(placeholder), frozenset((superclass, *companions)), background)
        for text, companions, background in templates
    ]


def pair_prompts(first: str, first_class: str, second: str, second_class: str) -> list[Prompt]:
    """Eight prompts with both concepts in one picture."""
    both = frozenset((first_class, second_class))
    pairs = (
        (f"a photo of a {first} next to a {second} on a {{}} background", "green"),
        (f"a photo of a {second} next to a {first} on a {{}} background", "red"),
        (f"a picture of a {first} next to a {second} on a {{}} background", "orange"),
        (f"a photo of a {second} beside a {first} on a {{}} background", "gray"),
        (f"a photo of a {first} and a {second} on a {{}} background", "red"),
        (f"a photo of a {second} next to a {first} on a {{}} background", "green"),
        (f"a photo of a {first} in a {second} on a {{}} background", "orange"),
        (f"a photo of a {first} in a {second} on a {{}} background", "green"),
    )
    return [Prompt(text.format(colour), both, colour) for text, colour in pairs]


def identity(verdicts: Sequence[Verdict], concept: Individual) -> float:
    """Share of the pictures that show the concept."""
    return sum(concept.name in v.concepts for v in verdicts) / len(verdicts)


def text_alignment(verdicts: Sequence[Verdict], asked: Sequence[Prompt]) -> float:
    """Share of the pictures that show all that the prompt names beside the identity."""
    right = sum(
        v.background == q.background and q.objects <= v.objects
        for v, q in zip(verdicts, asked, strict=True)
    )
    return right / len(verdicts)


def both_identities(verdicts: Sequence[Verdict], first: Individual, second: Individual) -> float:
    """Share of the pictures that show both concepts."""
    return sum({first.name, second.name} <= v.concepts for v in verdicts) / len(verdicts)
