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
RELATIONS = ("alone", "beside", "wearing", "inside", "three", "four")
RELATION_WEIGHTS = (0.34, 0.30, 0.08, 0.08, 0.12, 0.08)
TWINS = 0.12  # share of groups in which two things may be of one object, told apart by their looks
LONGEST = 30  # words and commas of a caption: a chunk of the text encoder less its two ends
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
        return Scene((random_thing(rng, population),), relation, background)
    if relation == "wearing":
        wearers = tuple(o for o in OBJECTS if o != "hat")
        wearer = random_thing(rng, population, wearers)
        return Scene((wearer, random_thing(rng, population, ("hat",))), relation, background)
    if relation == "inside":
        second = random_thing(rng, population, CONTAINERS)
        others = tuple(o for o in OBJECTS if o != second.object)
        return Scene((random_thing(rng, population, others), second), relation, background)
    return Scene(random_group(rng, population, GROUPS[relation]), relation, background)


GROUPS = {"beside": 2, "three": 3, "four": 4}


def random_group(rng: random.Random, population: list[Individual], count: int) -> tuple[Thing, ...]:
    """Different things, of different objects in most groups."""
    twins = rng.random() < TWINS
    things: list[Thing] = []
    while len(things) < count:
        thing = random_thing(rng, population)
        taken = {(t.object, t.look) if twins else t.object for t in things}
        if ((thing.object, thing.look) if twins else thing.object) not in taken:
            things.append(thing)
    return tuple(things)


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
    """What a person would write for the scene; the background is left out of one in seven, and
    what does not fit into one chunk of the text encoder is left out."""
    phrases = [noun_phrase(thing, rng) for thing in scene.things]
    if scene.relation in ("three", "four"):
        subject = f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    else:
        link = {
            "alone": ("",),
            "beside": ("next to", "next to", "beside", "and"),
            "wearing": ("wearing",),
            "inside": ("in",),
        }[scene.relation]
        subject = f" {rng.choice(link)} ".join(phrases)
    opening = rng.choices(OPENINGS, [6] + [1] * (len(OPENINGS) - 1))[0]
    background = f"on a {scene.background} background" if rng.random() < 0.86 else ""
    room = LONGEST - tokens_of(subject)
    if tokens_of(opening) > room:
        opening = ""
    if tokens_of(opening) + tokens_of(background) > room:
        background = ""
    return " ".join(filter(None, (opening, subject, background)))


def tokens_of(text: str) -> int:
    """How many tokens a caption takes: every word here is one, and so is a comma."""
    return len(text.replace(",", " ,").split())
