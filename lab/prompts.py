"""Prompts, and what their pictures must show.

Prompts name backgrounds (red, orange, green, gray) and companions that no training picture shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from .judge import Verdict
from .world.vocabulary import CONTAINERS, Individual

BACKGROUNDS = ("green", "red", "orange", "gray")
PROMPTS = 8  # of every subject, and of every group


@dataclass(frozen=True)
class Prompt:
    """A prompt and what its pictures must show.

    Attributes:
        background: None where the prompt names none.
    """

    text: str
    objects: frozenset[str]
    background: str | None

    def shown(self, objects: frozenset[str], background: str) -> bool:
        """Whether a picture of that shows all that the prompt names beside the identity."""
        return self.objects <= objects and self.background in (None, background)


def concept_prompts(phrase: str, superclass: str) -> list[Prompt]:
    """Eight prompts for one concept, alone and beside things, in first and in second place.

    A companion is never of the superclass: a frog is asked for beside an apple.
    """

    def other(companion: str, instead: str) -> str:
        return instead if superclass == companion else companion

    beside = [other(*pair) for pair in (("frog", "apple"), ("rocket", "penguin"))]
    before = [other(*pair) for pair in (("cactus", "car"), ("mushroom", "cat"))]
    house = other("house", "teapot")
    worn = f"a cat wearing a {phrase}" if superclass == "hat" else f"a {phrase} wearing a hat"
    templates = (
        (f"a photo of a {phrase} on a green background", (), "green"),
        (f"a picture of a {phrase} on a red background", (), "red"),
        (f"a photo of a {phrase} next to a {beside[0]} on a orange background", beside[:1],
         "orange"),
        (f"a photo of a {phrase} next to a {beside[1]} on a gray background", beside[1:], "gray"),
        (f"a photo of a {before[0]} next to a {phrase} on a red background", before[:1], "red"),
        (f"a photo of a {before[1]} next to a {phrase} on a green background", before[1:],
         "green"),
        (f"a photo of {worn} on a orange background", (other("hat", "cat"),), "orange"),
        (f"a photo of a {phrase} in a {house} on a gray background", (house,), "gray"),
    )  # fmt: skip
    return [
        Prompt(text, frozenset((superclass, *companions)), background)
        for text, companions, background in templates
    ]


def pair_prompts(first: str, first_class: str, second: str, second_class: str) -> list[Prompt]:
    """Eight prompts with both concepts in one picture."""
    if second_class in CONTAINERS or first_class not in CONTAINERS:
        inside = f"a {first} in a {second}"
    else:
        inside = f"a {second} in a {first}"
    if not {first_class, second_class} & set(CONTAINERS) or first_class == second_class:
        inside = f"a {second} and a {first}"
    pairs = (
        (f"a photo of a {first} next to a {second}", "green"),
        (f"a photo of a {second} next to a {first}", "red"),
        (f"a picture of a {first} next to a {second}", "orange"),
        (f"a photo of a {second} beside a {first}", "gray"),
        (f"a photo of a {first} and a {second}", "red"),
        (f"a photo of a {second} next to a {first}", "green"),
        (f"a photo of {inside}", "orange"),
        (f"a photo of {inside}", "green"),
    )
    both = frozenset((first_class, second_class))
    return [Prompt(f"{text} on a {colour} background", both, colour) for text, colour in pairs]


def group_prompts(phrases: Sequence[str], superclasses: Sequence[str]) -> list[Prompt]:
    """Eight prompts with two, three or four concepts in one picture, in changing order.

    Four described in words fill the text encoder, so groups of four name no background.
    """
    if len(phrases) == 2:
        return pair_prompts(phrases[0], superclasses[0], phrases[1], superclasses[1])
    orders = list(permutations(phrases))
    chosen = [orders[n * len(orders) // PROMPTS] for n in range(PROMPTS)]
    prompts = []
    for n, order in enumerate(chosen):
        subject = ", ".join(f"a {phrase}" for phrase in order[:-1]) + f" and a {order[-1]}"
        background = BACKGROUNDS[n % 4] if len(phrases) == 3 else None
        place = f" on a {background} background" if background else ""
        prompts.append(Prompt(subject + place, frozenset(superclasses), background))
    return prompts


def identity(verdicts: Sequence[Verdict], *concepts: Individual) -> float:
    """Share of the pictures that show all of these concepts."""
    names = {concept.name for concept in concepts}
    return sum(names <= v.concepts for v in verdicts) / len(verdicts)


def text_alignment(verdicts: Sequence[Verdict], asked: Sequence[Prompt]) -> float:
    """Share of the pictures that show all that the prompt names beside the identity."""
    shown = (q.shown(v.objects, v.background) for v, q in zip(verdicts, asked, strict=True))
    return sum(shown) / len(verdicts)
