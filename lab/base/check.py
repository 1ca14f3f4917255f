"""Asks the base model for 128 random scenes and has the judge look at the pictures; then for the
looks of the held-out concepts, described in words.

python -m lab.base.check        prints the shares, saves contact sheets in lab/output/
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from ..contact_sheet import Row, contact_sheet
from ..judge import load_judge
from ..open_comfyui import open_comfyui
from ..world.captions import RELATION_WEIGHTS, RELATIONS, noun_phrase
from ..world.render import Scene, Thing
from ..world.vocabulary import BACKGROUNDS, CONCEPTS, CONTAINERS, OBJECTS

OUTPUT = Path(__file__).parents[1] / "output"


def plain_scene(rng: random.Random) -> Scene:
    """A scene of plain objects: what anybody would type."""
    relation = rng.choices(RELATIONS, RELATION_WEIGHTS)[0]
    seconds = {"beside": OBJECTS, "wearing": ("hat",), "inside": CONTAINERS}
    things: tuple[Thing, ...] = ()
    if relation != "alone":
        things = (Thing(rng.choice(seconds[relation])),)
    others = [o for o in OBJECTS if not things or o != things[0].object]
    return Scene((Thing(rng.choice(others)), *things), relation, rng.choice(list(BACKGROUNDS)))


def prompt_of(scene: Scene, rng: random.Random) -> str:
    link = {"alone": "", "beside": "next to", "wearing": "wearing", "inside": "in"}[scene.relation]
    subject = f" {link} ".join(noun_phrase(thing, rng) for thing in scene.things)
    return f"a photo of {subject} on a {scene.background} background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    open_comfyui()
    from ..local_comfyui import LocalComfyUI

    rng = random.Random(args.seed)
    scenes = [plain_scene(rng) for _ in range(args.count)]
    prompts = [prompt_of(scene, rng) for scene in scenes]
    pictures = LocalComfyUI().sample([], prompts, args.seed)
    judge = load_judge()
    seen = judge.look_at(pictures)
    report = {
        "prompts": len(prompts),
        "objects": sum(
            v.objects == {t.object for t in s.things} for v, s in zip(seen, scenes, strict=True)
        )
        / len(prompts),
        "background": sum(v.background == s.background for v, s in zip(seen, scenes, strict=True))
        / len(prompts),
    }
    # What a concept could at best be here: its look in words, which the model has read in training.
    described = [(c, b) for c in CONCEPTS.values() for b in BACKGROUNDS]
    asked = [f"a photo of a {c.look.words()} {c.object} on a {b} background" for c, b in described]
    painted = LocalComfyUI().sample([], asked, args.seed)
    known = [
        c.name in v.concepts for v, (c, _) in zip(judge.look_at(painted), described, strict=True)
    ]
    report["described_looks"] = {
        name: sum(k for k, (c, _) in zip(known, described, strict=True) if c.name == name)
        / len(BACKGROUNDS)
        for name in CONCEPTS
    }
    OUTPUT.mkdir(exist_ok=True)
    rows = [
        Row(f"{c.name}: a {c.look.words()} {c.object}", painted[n : n + len(BACKGROUNDS)])
        for n, (c, _) in enumerate(described)
        if n % len(BACKGROUNDS) == 0
    ]
    contact_sheet(rows).save(OUTPUT / "base_looks.png")
    rows = [
        Row("", pictures[n : n + 8], prompts[n : n + 8])
        for n in range(0, min(64, len(pictures)), 8)
    ]
    contact_sheet(rows).save(OUTPUT / "base.png")
    (OUTPUT / "base.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
