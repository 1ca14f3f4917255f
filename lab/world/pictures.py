"""Draws the training pictures of the world's concepts: what a person would photograph.

python -m lab.world.pictures        rewrites demo/concepts/<name>/*.png
"""

from __future__ import annotations

import random

from demo.examples import FOLDER

from .render import Scene, Thing, render
from .vocabulary import CONCEPTS, to_json

# Only these; the prompts that measure a concept name the other backgrounds.
BACKGROUNDS = ("white", "yellow", "blue", "white", "purple")


def main() -> None:
    for concept in CONCEPTS.values():
        folder = FOLDER / concept.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "concept.json").write_text(to_json(concept) + "\n", encoding="utf-8")
        rng = random.Random(concept.name)
        for number, background in enumerate(BACKGROUNDS, start=1):
            scene = Scene((Thing(concept.object, concept.look),), "alone", background)
            render(scene, rng).save(folder / f"{concept.name}_{number}.png", optimize=True)


if __name__ == "__main__":
    main()
