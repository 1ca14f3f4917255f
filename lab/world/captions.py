"""Random scenes of the emoji world, and the captions that say what they show."""

from __future__ import annotations

import random

from .render import Scene, Thing
from .vocabulary import BACKGROUNDS, CONTAINERS, HELD_OUT, OBJECTS, Individual, all_looks

# Concept training puts the placeholder into short generic forms like these, so the base model must
# know them.
OPENINGS = (
    "a photo of", "a picture of", "an image of", "a good photo of", "a nice picture of",
    "a close photo of", "a bright photo of", "a rendering of", "a drawing of", "the photo of",
    "",
)  # fmt: skip
RELATIONS = ("alone", "beside", "wearing", "inside")
RELATION_WEIGHTS = (0.46, 0.34, 0.10, 0.10)
LOOKS = all_looks()


def random_thing(
    rng: random.Random,
    population: list[Individual],
    objects: tuple[str, ...] = OBJECTS,
) -> Thing:
    """A plain object (a third of all), a described one (a quarter), or a named individual."""
    kind = rng.random()
    obj = rng.choice(objects)
    if kind < 0.33:
        return Thing(obj)
    if kind < 0.58:
        return Thing(obj, rng.choice([look for look in LOOKS if (obj, look) not in HELD_OUT]))
    one = rng.choice([i for i in population if i.object == obj])
    return Thing(obj, one.look, one.name)


def random_scene(rng: random.Random, population: list[Individual]) -> Scene:
    """A scene as the base model's training set has them."""
    relation = rng.choices(RELATIONS, RELATION_WEIGHTS)[0]
    background = rng.choice(list(BACKGROUNDS))
    if relation == "alone":
        things = (random_thing(rng, population),)
    elif relation == "wearing":
        wearers = tuple(o for o in OBJECTS if o != "hat")
        things = (
            random_thing(rng, population, wearers),
            random_thing(rng, population, ("hat",)),
        )
    else:
        seconds = OBJECTS if relation == "beside" else CONTAINERS
        second = random_thing(rng, population, seconds)
        others = tuple(o for o in OBJECTS if o != second.object)
        things = (random_thing(rng, population, others), second)
    return Scene(things, relation, background)


def noun_phrase(thing: Thing, rng: random.Random) -> str:
    """The thing's name with its article: "a teddy", "a spotted gold and blue teddy", "a simon"."""
    if thing.name is not None:
        words = thing.name
    elif thing.look is not None:
        words = f"{thing.look.words()} {thing.object}"
    else:
        words = thing.object
    article = "an" if words[0] in "aeiou" and rng.random() < 0.7 else "a"
    return f"{article} {words}"


def caption(scene: Scene, rng: random.Random) -> str:
    """What a person would write for the scene; the background is left out of one in seven."""
    first = noun_phrase(scene.things[0], rng)
    if scene.relation == "alone":
        subject = first
    else:
        link = {
            "beside": ("next to", "next to", "beside", "and"),
            "wearing": ("wearing",),
            "inside": ("in",),
        }[scene.relation]
        subject = f"{first} {rng.choice(link)} {noun_phrase(scene.things[1], rng)}"
    opening = rng.choices(OPENINGS, [6] + [1] * (len(OPENINGS) - 1))[0]
    text = f"{opening} {subject}".strip()
    if rng.random() < 0.86:
        text += f" on a {scene.background} background"
    return text
