"""The judge: says which objects, which background and which concepts a picture shows.

A small classifier of fresh renders, fixed before any generated picture is looked at.

    python -m lab.judge --minutes 8      trains it (on), prints its accuracy on fresh renders
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from .world.captions import LOOKS, RELATIONS, random_thing
from .world.render import Scene, Thing, render
from .world.vocabulary import (
    BACKGROUNDS,
    CONCEPTS,
    CONTAINERS,
    OBJECTS,
    PAINTS,
    PATTERNS,
    Individual,
    Look,
    individuals,
)

WEIGHTS = Path(__file__).with_name("judge.safetensors")
BACKGROUND_NAMES = tuple(BACKGROUNDS)
CONCEPT_NAMES = tuple(CONCEPTS)


@dataclass(frozen=True)
class Verdict:
    """What a picture shows."""

    objects: frozenset[str]
    background: str
    concepts: frozenset[str]


def _block(ins: int, outs: int, stride: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(ins, outs, 3, stride, 1, bias=False),
        torch.nn.BatchNorm2d(outs),
        torch.nn.ReLU(),
    )


class Judge(torch.nn.Module):
    """Pictures [N, 3, 128, 128] in 0..1 -> logits of objects, background and concepts."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = torch.nn.Sequential(
            _block(3, 32, 2), _block(32, 48, 2), _block(48, 48, 1), _block(48, 96, 2),
            _block(96, 96, 1), _block(96, 128, 2), _block(128, 128, 1),
        )  # fmt: skip
        self.objects = torch.nn.Linear(256, len(OBJECTS))
        self.background = torch.nn.Linear(256, len(BACKGROUND_NAMES))
        self.concepts = torch.nn.Linear(256, len(CONCEPT_NAMES))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = self.trunk(x * 2 - 1)
        h = torch.cat([h.amax(dim=(2, 3)), h.mean(dim=(2, 3))], dim=1)
        return self.objects(h), self.background(h), self.concepts(h)

    @torch.no_grad()
    def look_at(self, pictures: list[Image.Image]) -> list[Verdict]:
        """A verdict for each picture (any size; seen at 128 x 128)."""
        arrays = [np.asarray(p.convert("RGB").resize((128, 128))) for p in pictures]
        x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        objects, background, concepts = self(x)
        return [
            Verdict(
                frozenset(n for n, v in zip(OBJECTS, o, strict=True) if v > 0),
                BACKGROUND_NAMES[int(b.argmax())],
                frozenset(n for n, v in zip(CONCEPT_NAMES, c, strict=True) if v > 0),
            )
            for o, b, c in zip(objects, background, concepts, strict=True)
        ]


def load_judge() -> Judge:
    judge = Judge()
    judge.load_state_dict({k: v.float() if v.is_floating_point() else v
                           for k, v in load_file(WEIGHTS).items()})  # fmt: skip
    return judge.eval()


def near_miss(look: Look, rng: random.Random) -> Look:
    """The look with one thing changed: what the judge must not take for the concept."""
    assert look.second is not None
    kind = rng.randrange(4)
    others = [p for p in PAINTS if p not in (look.paint, look.second)]
    if kind == 0:
        return Look(rng.choice(others), look.second, look.pattern)
    if kind == 1:
        return Look(look.paint, rng.choice(others), look.pattern)
    if kind == 2:
        patterns = [p for p in PATTERNS[1:] if p != look.pattern]
        return Look(look.paint, look.second, rng.choice(patterns))
    return Look(look.paint)


def thing_to_judge(
    rng: random.Random, population: list[Individual], objects: tuple[str, ...]
) -> Thing:
    """A concept, a near miss of one, or anything else of the world."""
    fitting = [c for c in CONCEPTS.values() if c.object in objects]
    kind = rng.random()
    if fitting and kind < 0.6:
        concept = rng.choice(fitting)
        if kind < 0.35:
            return Thing(concept.object, concept.look)
        return Thing(concept.object, near_miss(concept.look, rng))
    if kind < 0.7:
        return Thing(rng.choice(objects), rng.choice(list(CONCEPTS.values())).look)
    if kind < 0.8:
        return Thing(rng.choice(objects), rng.choice(LOOKS))
    return random_thing(rng, population, objects)


def scene_to_judge(rng: random.Random, population: list[Individual]) -> Scene:
    relation = rng.choices(RELATIONS, (0.35, 0.45, 0.1, 0.1))[0]
    if relation == "alone":
        things: tuple[Thing, ...] = (thing_to_judge(rng, population, OBJECTS),)
    else:
        seconds = {"beside": OBJECTS, "wearing": ("hat",), "inside": CONTAINERS}[relation]
        second = thing_to_judge(rng, population, seconds)
        firsts = tuple(o for o in OBJECTS if o != second.object)
        things = (thing_to_judge(rng, population, firsts), second)
    return Scene(things, relation, rng.choice(BACKGROUND_NAMES))


def labelled_drawings(
    rng: random.Random, population: list[Individual], count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fresh renders and their true labels."""
    pictures = []
    objects = torch.zeros(count, len(OBJECTS))
    background = torch.zeros(count, dtype=torch.long)
    concepts = torch.zeros(count, len(CONCEPT_NAMES))
    for n in range(count):
        scene = scene_to_judge(rng, population)
        pictures.append(np.asarray(render(scene, rng)))
        background[n] = BACKGROUND_NAMES.index(scene.background)
        for thing in scene.things:
            objects[n, OBJECTS.index(thing.object)] = 1
            for k, concept in enumerate(CONCEPTS.values()):
                if thing.object == concept.object and thing.look == concept.look:
                    concepts[n, k] = 1
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return x, objects, background, concepts


def blemish(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Blur, noise and a little tint, as an autoencoder or a sampler leaves them."""
    if rng.random() < 0.7:
        size = rng.randint(56, 120)
        x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        x = F.interpolate(x, size=(128, 128), mode="bilinear")
    x = x + torch.randn_like(x) * rng.uniform(0, 0.04)
    tint = torch.empty(x.shape[0], 3, 1, 1).uniform_(-0.03, 0.03)
    return (x * torch.empty(x.shape[0], 1, 1, 1).uniform_(0.93, 1.07) + tint).clamp(0, 1)


def accuracy(judge: Judge, count: int, seed: int) -> dict[str, float]:
    """Share of fresh renders judged wholly right.

    The set of objects, the background, the set of concepts.
    """
    rng = random.Random(seed)
    population = list(individuals().values())
    right = torch.zeros(3)
    for _ in range(0, count, 100):
        x, objects, background, concepts = labelled_drawings(rng, population, 100)
        with torch.no_grad():
            o, b, c = judge(x)
        right += torch.stack(
            [
                ((o > 0) == (objects > 0)).all(1).sum(),
                (b.argmax(1) == background).sum(),
                ((c > 0) == (concepts > 0)).all(1).sum(),
            ]
        )
    shares = (right / (-(-count // 100) * 100)).tolist()
    return dict(zip(("objects", "background", "concepts"), shares, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    population = list(individuals().values())
    judge = (load_judge() if WEIGHTS.exists() else Judge()).train()
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-3)
    start, step = time.time(), 0
    while (spent := (time.time() - start) / (60 * args.minutes)) < 1:
        x, objects, background, concepts = labelled_drawings(rng, population, 48)
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - spent) ** 0.7
        with torch.autocast("cpu", torch.bfloat16):
            o, b, c = judge(blemish(x, rng))
        loss = (
            F.binary_cross_entropy_with_logits(o.float(), objects)
            + 0.5 * F.cross_entropy(b.float(), background)
            + 2 * F.binary_cross_entropy_with_logits(c.float(), concepts)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"{step:5d} {time.time() - start:5.0f}s loss {loss:.4f}", flush=True)
        step += 1
    judge.eval()
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half() if v.is_floating_point() else v
               for k, v in judge.state_dict().items()}, WEIGHTS)  # fmt: skip
    print("accuracy on 3000 fresh renders", accuracy(load_judge(), 3000, seed=10_000 + args.seed))


if __name__ == "__main__":
    main()
