"""Draws the training pictures of the world's concepts: what a person would photograph.

python -m lab.world.pictures        rewrites demo/concepts/<name>/*.png
"""

from __future__ import annotations

import random

from PIL import Image

from demo.examples import FOLDER

from .render import Scene, Thing, render
from .vocabulary import CONCEPTS, Individual, to_json

# Only these, one each picture; the prompts that measure a concept name other backgrounds.
BACKGROUNDS = ("white", "yellow", "blue", "white", "purple")


def training_pictures(concept: Individual) -> list[Image.Image]:
    """The pictures to learn a concept from: alone, once on every background here."""
    rng = random.Random(concept.name)
    return [
        render(Scene((Thing(concept.object, concept.look),), "alone", background), rng)
        for background in BACKGROUNDS
    ]


def main() -> None:
    for concept in CONCEPTS.values():
        folder = FOLDER / concept.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "concept.json").write_text(to_json(concept) + "\n", encoding="utf-8")
        for number, picture in enumerate(training_pictures(concept), start=1):
            picture.save(folder / f"{concept.name}_{number}.png", optimize=True)


if __name__ == "__main__":
    main()
