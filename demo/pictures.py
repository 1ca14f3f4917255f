"""Draws the training pictures of the world's concepts: what a person would photograph.

python -m demo.pictures        rewrites demo/concepts/<name>/*.png
"""

from __future__ import annotations

import random
from pathlib import Path

from .world.render import Scene, Thing, render
from .world.vocabulary import CONCEPTS, to_json

FOLDER = Path(__file__).with_name("concepts")
# Only these; the exam's prompts name the other backgrounds.
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
