"""Several concepts in one picture: what became of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from .judge import Verdict
from .world.vocabulary import CONCEPTS, REPORTED, Individual


def individual_of(name: str) -> Individual:
    """A concept of the world by its name."""
    return CONCEPTS[name] if name in CONCEPTS else REPORTED[name]


class Fate(str, Enum):
    """What became of one concept of a group in a picture."""

    THERE = "there"  # its object in its look
    SWAPPED = "swapped"  # its object in the look of another concept of the group
    BLENDED = "blended"  # its object in some other look
    PLAIN = "plain"  # its object in its emoji colours
    DROPPED = "dropped"  # its object is not there


def fates(verdict: Verdict, group: Sequence[Individual]) -> list[Fate]:
    """What became of each concept of a group. Each thing seen stands for one concept at most."""
    left = list(verdict.things)
    found: dict[str, Fate] = {}
    looks = [individual.look for individual in group]

    def take(individual: Individual, fate: Fate, fits: Sequence[object]) -> None:
        for thing in left:
            if thing.object == individual.object and thing.look in fits:
                left.remove(thing)
                found[individual.name] = fate
                return

    # Own looks first, so that no concept takes the thing that is another's own.
    for individual in group:
        take(individual, Fate.THERE, [individual.look])
    for individual in group:
        if individual.name not in found:
            take(individual, Fate.SWAPPED, [look for look in looks if look != individual.look])
    for individual in group:
        if individual.name not in found:
            take(individual, Fate.PLAIN, [None])
    for individual in group:
        if individual.name not in found:
            others = [thing.look for thing in left if thing.object == individual.object]
            take(individual, Fate.BLENDED, others)
    return [found.get(individual.name, Fate.DROPPED) for individual in group]
