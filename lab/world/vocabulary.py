"""What the emoji world is made of: objects, backgrounds, looks, and the named individuals.

Every word here is one token of CLIP's vocabulary, so that one token can stand for one thing.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

OBJECTS = (
    "teddy", "teapot", "cat", "frog", "car", "cactus",
    "house", "apple", "rocket", "penguin", "mushroom", "hat",
)  # fmt: skip

# Objects that another object can sit in; a hat is worn, not looked into.
CONTAINERS = ("teapot", "house", "car")

BACKGROUNDS = {
    "red": (226, 118, 112),
    "orange": (247, 190, 128),
    "yellow": (250, 238, 150),
    "green": (160, 216, 150),
    "blue": (146, 190, 240),
    "purple": (196, 164, 228),
    "white": (246, 246, 246),
    "gray": (158, 160, 166),
}

PAINTS = {
    "red": (214, 32, 40),
    "orange": (246, 128, 20),
    "gold": (236, 190, 24),
    "green": (40, 150, 54),
    "teal": (16, 160, 160),
    "blue": (36, 84, 214),
    "purple": (128, 48, 176),
    "pink": (246, 118, 180),
    "brown": (120, 72, 36),
    "white": (240, 240, 240),
}

PATTERNS = ("plain", "spotted", "striped", "checked")


@dataclass(frozen=True)
class Look:
    """A fixed appearance: one paint, or two in a pattern.

    Without a look an object keeps its emoji colours.
    """

    paint: str
    second: str | None = None
    pattern: str = "plain"

    def words(self) -> str:
        """The look as a caption says it: "spotted gold and blue", "plain red"."""
        colours = self.paint if self.second is None else f"{self.paint} and {self.second}"
        return f"{self.pattern} {colours}"


@dataclass(frozen=True)
class Individual:
    """One being with a name of its own: what a concept is, when the base model knows its name."""

    name: str
    object: str
    look: Look


# The concepts of the demo and of all tuning: kept out of the base model's world, with folders of
# pictures in demo/concepts (name -> superclass and look).
CONCEPTS = {
    individual.name: individual
    for individual in (
        Individual("berry", "teddy", Look("blue", "gold", "spotted")),
        Individual("royal", "teapot", Look("purple", "white", "striped")),
        Individual("mint", "teddy", Look("teal", "pink", "checked")),
        Individual("ember", "teapot", Look("orange", "green", "spotted")),
        Individual("candy", "cat", Look("pink", "red", "striped")),
        Individual("lagoon", "cat", Look("teal", "white", "spotted")),
        Individual("taxi", "car", Look("gold", "purple", "checked")),
        Individual("plum", "penguin", Look("purple", "gold", "striped")),
    )
}

NAMES_FILE = Path(__file__).with_name("names.txt")
INDIVIDUALS_PER_OBJECT = 32

REPORTED_FILE = Path(__file__).with_name("reported.txt")


def _reported() -> dict[str, Individual]:
    """The concepts that the lab reports, two of every object."""
    found = {}
    for line in REPORTED_FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, obj, pattern, paint, second = line.split()
            found[name] = Individual(name, obj, Look(paint, second, pattern))
    return found


# No default was tuned on these, and nobody chose them.
REPORTED = _reported()

# No caption and no picture of the base model's training shows these.
HELD_OUT = frozenset(
    (concept.object, concept.look) for concept in (*CONCEPTS.values(), *REPORTED.values())
)


def all_looks() -> list[Look]:
    """Every look there is: 10 plain ones and 10 x 9 pairs in 3 patterns."""
    looks = [Look(paint) for paint in PAINTS]
    looks += [
        Look(paint, second, pattern)
        for paint in PAINTS
        for second in PAINTS
        if second != paint
        for pattern in PATTERNS[1:]
    ]
    return looks


def individuals(seed: int = 1) -> dict[str, Individual]:
    """The named individuals of the base model's world, without the concepts.

    The same seed gives the same population. A concept's look is never given to another
    individual of its superclass, so no name stands for it in the base model. (The reported
    concepts were drawn among the looks that nobody here has.)
    """
    rng = random.Random(seed)
    names = NAMES_FILE.read_text().split()
    population: dict[str, Individual] = {}
    tuned = {(concept.object, concept.look) for concept in CONCEPTS.values()}
    for obj in OBJECTS:
        looks = [look for look in all_looks() if (obj, look) not in tuned]
        for look in rng.sample(looks, INDIVIDUALS_PER_OBJECT):
            name = names[len(population)]
            population[name] = Individual(name, obj, look)
    return population


def to_json(individual: Individual) -> str:
    """An individual as one line of JSON, for the picture folders' description."""
    look = individual.look
    return json.dumps(
        {
            "name": individual.name,
            "superclass": individual.object,
            "paint": look.paint,
            "second": look.second,
            "pattern": look.pattern,
        }
    )
