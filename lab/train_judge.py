"""Trains the judge: on fresh drawings, clean, blemished, and as the autoencoder leaves them.

python -m lab.train_judge --minutes 40     trains it (on), prints its accuracy on fresh drawings
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from .judge import BACKGROUND_NAMES, CELL, FIRST, SECOND, WEIGHTS, Judge, load_judge, look_of
from .world.captions import LOOKS, RELATIONS, random_thing
from .world.render import Scene, Thing, draw
from .world.vocabulary import CONTAINERS, OBJECTS, PAINTS, PATTERNS, Individual, Look, individuals


def near_miss(look: Look, rng: random.Random) -> Look:
    """The look with one thing changed: what the judge must not take for it."""
    others = [p for p in PAINTS if p not in (look.paint, look.second)]
    kind = rng.randrange(5) if look.second else 0
    if kind == 0:
        return Look(rng.choice(others), look.second, look.pattern)
    if kind == 1:
        return Look(look.paint, rng.choice(others), look.pattern)
    if kind == 2:
        patterns = [p for p in PATTERNS[1:] if p != look.pattern]
        return Look(look.paint, look.second, rng.choice(patterns))
    if kind == 3:
        assert look.second is not None
        return Look(look.second, look.paint, look.pattern)
    return Look(look.paint)


def thing_to_judge(
    rng: random.Random, population: list[Individual], objects: tuple[str, ...]
) -> Thing:
    """Any look on any object, or a plain object."""
    if rng.random() < 0.7:
        return Thing(rng.choice(objects), rng.choice(LOOKS))
    return random_thing(rng, population, objects)


def scene_to_judge(rng: random.Random, population: list[Individual]) -> Scene:
    """A scene whose things are often nearly alike: of one object, or of all but one look."""
    relation = rng.choices(RELATIONS, (0.25, 0.3, 0.1, 0.1, 0.13, 0.12))[0]
    first = thing_to_judge(rng, population, OBJECTS)
    things = [first]
    seconds = {"wearing": ("hat",), "inside": CONTAINERS}.get(relation, OBJECTS)
    count = {"alone": 1, "three": 3, "four": 4}.get(relation, 2)
    while len(things) < count:
        thing = thing_to_judge(rng, population, seconds)
        if first.look and rng.random() < 0.25:
            thing = Thing(thing.object, near_miss(first.look, rng))
        things.append(thing)
    return Scene(tuple(things), relation, rng.choice(BACKGROUND_NAMES))


@dataclass(frozen=True)
class Labelled:
    """Drawings [N, 3, 128, 128] in 0..1 and what they show.

    Attributes:
        centres: [N, 12, 16, 16], 1 at the cell of an object's centre, less around it.
        things: (picture, row, column, first, second, pattern), one of each thing [M, 6].
        background: [N].
    """

    pictures: Tensor
    centres: Tensor
    things: Tensor
    background: Tensor

    def some(self, which: Tensor) -> Labelled:
        """Those of these numbers."""
        place = torch.full((len(self.pictures),), -1)
        place[which] = torch.arange(len(which))
        kept = self.things[place[self.things[:, 0]] >= 0]
        kept = torch.cat([place[kept[:, :1]], kept[:, 1:]], dim=1)
        return Labelled(self.pictures[which], self.centres[which], kept, self.background[which])


def labelled_drawings(rng: random.Random, population: list[Individual], count: int) -> Labelled:
    """Fresh drawings and their true labels."""
    cells = 128 // CELL
    at = (torch.arange(cells) + 0.5) * CELL
    pictures, things = [], []
    centres = torch.zeros(count, len(OBJECTS), cells, cells)
    background = torch.zeros(count, dtype=torch.long)
    for n in range(count):
        scene = scene_to_judge(rng, population)
        picture, places = draw(scene, rng)
        pictures.append(np.asarray(picture))
        background[n] = BACKGROUND_NAMES.index(scene.background)
        for thing, (x, y) in zip(scene.things, places, strict=True):
            row, column = (min(cells - 1, max(0, int(v // CELL))) for v in (y, x))
            near = torch.exp(-((at[:, None] - y) ** 2 + (at - x) ** 2) / (2 * 6.0**2))
            near[row, column] = 1
            of_object = centres[n, OBJECTS.index(thing.object)]
            of_object.copy_(torch.maximum(of_object, near))
            look = thing.look
            first = FIRST.index(look.paint if look else None)
            second = SECOND.index(look.second if look else None)
            pattern = PATTERNS.index(look.pattern if look else "plain")
            things.append((n, row, column, first, second, pattern))
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return Labelled(x, centres, torch.tensor(things), background)


def blemish(x: Tensor, rng: random.Random) -> Tensor:
    """Blur, noise and a little tint, as a sampler leaves them."""
    if rng.random() < 0.5:
        size = rng.randint(56, 120)
        x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        x = F.interpolate(x, size=(128, 128), mode="bilinear")
    x = x + torch.randn_like(x) * rng.uniform(0, 0.04)
    tint = torch.empty(x.shape[0], 3, 1, 1).uniform_(-0.03, 0.03)
    return (x * torch.empty(x.shape[0], 1, 1, 1).uniform_(0.93, 1.07) + tint).clamp(0, 1)


def errors_of(judge: Judge, drawn: Labelled, pictures: Tensor) -> Tensor:
    """The loss of what the judge says of `pictures`, which are the drawn ones or copies."""
    with torch.autocast("cpu", torch.bfloat16):
        out = {name: logits.float() for name, logits in judge(pictures).items()}
    # Focal loss of centres (arXiv 1904.07850, Eq. 1): beside a centre an answer costs less.
    chance = out["centres"].sigmoid().clamp(1e-4, 1 - 1e-4)
    true = drawn.centres == 1
    right = torch.log(chance) * (1 - chance) ** 2
    wrong = torch.log(1 - chance) * chance**2 * (1 - drawn.centres) ** 4
    loss = -torch.where(true, right, wrong).sum() / len(drawn.things)
    n, row, column, *parts = drawn.things.unbind(dim=1)
    for part, label in zip(("first", "second", "pattern"), parts, strict=True):
        loss = loss + F.cross_entropy(out[part][n, :, row, column], label)
    return loss + 0.5 * F.cross_entropy(out["background"], drawn.background)


def accuracy(
    judge: Judge, count: int, seed: int, through: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """Share of fresh drawings judged wholly right: the things' objects, all of their looks, the
    background.

    Args:
        through: what to make of the pictures [N, 3, 128, 128] first.
    """
    rng = random.Random(seed)
    population = list(individuals().values())
    right = np.zeros(3)
    for _ in range(0, count, 100):
        drawn = labelled_drawings(rng, population, 100)
        pictures = through(drawn.pictures) if through else drawn.pictures
        arrays = (pictures.permute(0, 2, 3, 1) * 255).round().byte().numpy()
        verdicts = judge.look_at([Image.fromarray(a) for a in arrays])
        for n, verdict in enumerate(verdicts):
            of_picture = drawn.things[drawn.things[:, 0] == n].tolist()
            objects = sorted(
                OBJECTS[int(drawn.centres[n, :, row, column].argmax())]
                for _, row, column, *_ in of_picture
            )
            looks = sorted(str(look_of(*parts)) for _, _, _, *parts in of_picture)
            right += (
                objects == sorted(t.object for t in verdict.things),
                looks == sorted(str(t.look) for t in verdict.things),
                verdict.background == BACKGROUND_NAMES[int(drawn.background[n])],
            )
    shares = (right / (-(-count // 100) * 100)).tolist()
    return dict(zip(("objects", "looks", "background"), shares, strict=True))


class ThroughAutoencoder:
    """Pictures as the world's autoencoder gives them back, from latents that are a little off.

    Import this only after `open_comfyui()`.
    """

    def __init__(self) -> None:
        from comfy.taesd.taesd import TAESD

        from demo.model import LATENT_CHANNELS, WEIGHTS

        from .base.autoencoder import INSIDE
        from .base.train_decoder import load_components

        taesd = TAESD(latent_channels=LATENT_CHANNELS)
        stored = load_file(WEIGHTS / "vae.safetensors")
        taesd.load_state_dict({k: v.float() for k, v in stored.items()})
        self.decoder = taesd.taesd_decoder.to(memory_format=torch.channels_last)
        self.components, self.inside = load_components(), INSIDE

    @torch.no_grad()
    def __call__(self, pictures: Tensor, most: float = 0.15) -> Tensor:
        """Pictures [N, 3, 128, 128] in 0..1.

        Args:
            most: standard deviation of what the latents are off by, at most.
        """
        latents = self.components.encode(pictures)
        off = most * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
        scaled = ((latents + off) * self.inside).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            decoded: Tensor = self.decoder(scaled)
        return decoded.float().clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--decoded", type=int, default=4000, help="drawings that the autoencoder is asked for"
    )
    args = parser.parse_args()
    from .open_comfyui import open_comfyui

    open_comfyui()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    population = list(individuals().values())
    through = ThroughAutoencoder()
    start = time.time()
    pool = labelled_drawings(random.Random(args.seed + 1), population, args.decoded)
    decoded = torch.cat([through(x) for x in pool.pictures.split(50)]).half()
    print(f"{args.decoded} decoded in {time.time() - start:.0f}s", flush=True)
    judge = (load_judge() if WEIGHTS.exists() else Judge()).train()
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-3)
    start, step = time.time(), 0
    while (spent := (time.time() - start) / (60 * args.minutes)) < 1:
        if step % 2:
            which = torch.tensor(rng.sample(range(args.decoded), 48))
            drawn, pictures = pool.some(which), decoded[which].float()
        else:
            drawn = labelled_drawings(rng, population, 48)
            pictures = drawn.pictures
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - spent) ** 0.7
        loss = errors_of(judge, drawn, blemish(pictures, rng))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"{step:5d} {time.time() - start:5.0f}s loss {loss:.4f}", flush=True)
        step += 1
    judge.eval()
    save_file({k: v.half() if v.is_floating_point() else v
               for k, v in judge.state_dict().items()}, WEIGHTS)  # fmt: skip
    judge, seed = load_judge(), 10_000 + args.seed
    print("accuracy on 2000 fresh drawings", accuracy(judge, 2000, seed))
    print("as the autoencoder leaves them", accuracy(judge, 2000, seed + 1, through))


if __name__ == "__main__":
    main()
