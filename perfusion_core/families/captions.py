"""Built-in captions, so that a covariance needs no file: plain, varied, always the same.

They belong to the model family: `ModelFamily.captions` names one of the functions here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

COUNT = 512

_OPENINGS = (
    "a photo of", "a picture of", "a painting of", "a drawing of", "an image of", "a close up of",
    "a black and white photo of", "an illustration of", "a watercolor of", "a portrait of",
    "a rendering of", "a sketch of", "an old photograph of", "a poster of",
)  # fmt: skip
_KINDS = (
    "red", "small", "large", "old", "wooden", "young", "bright", "broken", "golden", "green",
    "happy", "tall", "white", "dark blue", "striped", "shiny", "colorful", "ancient", "fluffy",
    "modern", "rusty", "tiny", "yellow", "beautiful", "empty", "smiling", "black", "stone",
    "purple",
)  # fmt: skip
_SUBJECTS = (
    "dog", "cat", "woman", "man", "child", "bird", "horse", "car", "bicycle", "boat", "train",
    "house", "castle", "tree", "flower", "mountain", "chair", "table", "lamp", "clock", "book",
    "cup of coffee", "plate of food", "pizza", "cake", "apple", "bowl of fruit", "bottle", "guitar",
    "piano", "computer", "phone", "camera", "backpack", "shoe", "dress", "hat", "teddy bear", "toy",
    "robot", "dragon", "knight", "astronaut", "dancer", "chef", "farmer", "family", "soccer player",
    "elephant", "lion", "fish", "butterfly", "rabbit", "sheep", "cow", "bridge", "church", "statue",
    "street sign", "airplane", "truck", "motorcycle", "umbrella", "vase", "teapot", "candle",
    "sofa", "frog", "penguin", "rocket", "cactus", "mushroom", "waterfall", "island",
)  # fmt: skip
_ACTIONS = (
    "sitting on a bench", "standing in the rain", "next to a window", "in front of a brick wall",
    "on a table", "under a tree", "covered in snow", "on the beach at sunset", "in a busy street",
    "in the forest", "at night", "with mountains in the background", "on a wooden floor",
    "in the middle of a field", "floating in space", "in a kitchen", "beside a river",
    "during a storm", "by the sea", "on top of a hill", "surrounded by flowers", "in a museum",
    "inside a small room", "made of glass", "seen from above", "in the city of Paris",
    "with a long shadow", "playing with a ball", "running through the grass",
    "looking at the camera",
)  # fmt: skip
_STYLES = (
    "highly detailed", "oil on canvas", "soft light", "in the style of a comic book", "minimalist",
    "studio lighting", "pastel colors", "vintage", "sharp focus", "digital art", "award winning",
    "low angle", "wide shot", "cinematic", "hand drawn", "realistic",
)  # fmt: skip

# The words of the emoji world, whose text encoder was trained on no others.
_EMOJI_SUBJECTS = (
    "teddy", "teapot", "cat", "frog", "car", "cactus", "house", "apple", "rocket", "penguin",
    "mushroom", "hat",
)  # fmt: skip
_EMOJI_OPENINGS = (
    "a photo of", "a photo of", "a picture of", "an image of", "a good photo of",
    "a nice picture of", "a close photo of", "a bright photo of", "a rendering of", "a drawing of",
    "the photo of", "",
)  # fmt: skip
_EMOJI_LINKS = ("next to", "beside", "and", "wearing", "in")
_EMOJI_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "gray")


def ordinary_captions() -> tuple[str, ...]:
    """`COUNT` captions as people write them, all different, of 2 to about 20 words."""
    rng = random.Random(0)
    return _in_turn(_ordinary(rng))


def emoji_captions() -> tuple[str, ...]:
    """`COUNT` captions for the emoji world: two ordinary ones for each of its own sentences."""
    rng = random.Random(0)
    return _in_turn(_ordinary(rng), _ordinary(rng), _emoji(rng))


def _in_turn(*makers: Iterator[str]) -> tuple[str, ...]:
    """`COUNT` different captions: one of each maker, again and again."""
    captions: dict[str, None] = {}  # a set that keeps its order
    while len(captions) < COUNT:
        captions[next(makers[len(captions) % len(makers)])] = None
    return tuple(captions)


def ordinary_words() -> tuple[str, ...]:
    """What the captions say of things and around them: all their words but those for things."""
    return (*_OPENINGS, *_KINDS, *_ACTIONS, *_STYLES, *_EMOJI_LINKS, *_EMOJI_COLOURS)


def _ordinary(rng: random.Random) -> Iterator[str]:
    """Captions as people write them: often short, sometimes long."""
    while True:
        parts = [rng.choice(_OPENINGS)] if rng.random() < 0.6 else []
        parts.append(_noun(rng, _SUBJECTS))
        if rng.random() < 0.25:
            parts += ["and", _noun(rng, _SUBJECTS)]
        if rng.random() < 0.7:
            parts.append(rng.choice(_ACTIONS))
        caption = " ".join(parts)
        if rng.random() < 0.25:
            caption += ", " + ", ".join(rng.sample(_STYLES, rng.randint(1, 3)))
        yield caption


def _emoji(rng: random.Random) -> Iterator[str]:
    """Captions of the emoji world."""
    while True:
        subjects = rng.sample(_EMOJI_SUBJECTS, 2)
        caption = f"{rng.choice(_EMOJI_OPENINGS)} {_with_article(subjects[0])}".strip()
        if rng.random() < 0.5:
            caption += f" {rng.choice(_EMOJI_LINKS)} {_with_article(subjects[1])}"
        if rng.random() < 0.85:
            caption += f" on {_with_article(rng.choice(_EMOJI_COLOURS))} background"
        yield caption


def _noun(rng: random.Random, nouns: tuple[str, ...]) -> str:
    kind = f"{rng.choice(_KINDS)} " if rng.random() < 0.45 else ""
    return _with_article(kind + rng.choice(nouns))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
