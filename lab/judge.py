"""The judge: says which things a picture shows, where and in which look, and the background.

A small detector, trained on drawings alone (`train_judge.py`) and fixed before any generated
picture is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from .world.vocabulary import (
    BACKGROUNDS,
    CONCEPTS,
    OBJECTS,
    PAINTS,
    PATTERNS,
    REPORTED,
    Look,
)

WEIGHTS = Path(__file__).with_name("judge.safetensors")
BACKGROUND_NAMES = tuple(BACKGROUNDS)
# What a thing may be painted with first (None: its emoji colours) and second (None: one paint).
FIRST = (None, *PAINTS)
SECOND = (None, *PAINTS)
CELL = 8  # pixels a cell of the judge's grid
# From which chance on a cell is a thing's centre. Chosen on drawings alone: of 600 that the world's
# autoencoder had given back and that were then blemished, all things are found and no other in
# 0.995, with 0.25 as with 0.35; with 0.5 a thing is missed in one of 40.
SURE = 0.3
NAMED = {(c.object, c.look): c.name for c in (*CONCEPTS.values(), *REPORTED.values())}


@dataclass(frozen=True)
class Seen:
    """One thing in a picture.

    Attributes:
        object: what it is.
        look: in which paint; None in its emoji colours.
        x, y: its centre, in pixels of 128.
        reading: how sure the judge is of its look: the chances of every first paint, of every
            second, and of every pattern.
    """

    object: str
    look: Look | None
    x: float
    y: float
    reading: tuple[np.ndarray, ...]

    @property
    def concept(self) -> str | None:
        """The name of the concept that it is, if any."""
        return NAMED.get((self.object, self.look)) if self.look else None


@dataclass(frozen=True)
class Verdict:
    """What a picture shows."""

    things: tuple[Seen, ...]
    background: str

    @cached_property
    def objects(self) -> frozenset[str]:
        return frozenset(thing.object for thing in self.things)

    @cached_property
    def concepts(self) -> frozenset[str]:
        return frozenset(thing.concept for thing in self.things if thing.concept)


def _block(ins: int, outs: int, stride: int = 1, dilation: int = 1) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(ins, outs, 3, stride, dilation, dilation, bias=False),
        torch.nn.BatchNorm2d(outs),
        torch.nn.ReLU(),
    )


class Judge(torch.nn.Module):
    """Pictures [N, 3, 128, 128] in 0..1 -> logits on a grid of 16 x 16 cells: centres of objects
    [N, 12, 16, 16], and of the thing centred there first paint [N, 11, ...], second paint
    [N, 11, ...] and pattern [N, 4, ...]; and of the background [N, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = torch.nn.Sequential(
            _block(3, 32, 2), _block(32, 48, 2), _block(48, 48), _block(48, 96, 2), _block(96, 96),
            _block(96, 128, 1, 2), _block(128, 128, 1, 2), _block(128, 128, 1, 4), _block(128, 128),
        )  # fmt: skip
        self.centres = torch.nn.Conv2d(128, len(OBJECTS), 1)
        torch.nn.init.constant_(self.centres.bias, -4.0)  # few cells are centres
        self.look = torch.nn.Sequential(_block(128, 128), torch.nn.Conv2d(128, 128, 1))
        self.first = torch.nn.Conv2d(128, len(FIRST), 1)
        self.second = torch.nn.Conv2d(128, len(SECOND), 1)
        self.pattern = torch.nn.Conv2d(128, len(PATTERNS), 1)
        self.background = torch.nn.Linear(256, len(BACKGROUND_NAMES))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x * 2 - 1)
        look = torch.relu(self.look(h))
        return {
            "centres": self.centres(h),
            "first": self.first(look),
            "second": self.second(look),
            "pattern": self.pattern(look),
            "background": self.background(torch.cat([h.amax(dim=(2, 3)), h.mean((2, 3))], dim=1)),
        }

    @torch.no_grad()
    def look_at(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        """A verdict for each picture (any size; seen at 128 x 128)."""
        arrays = [np.asarray(p.convert("RGB").resize((128, 128))) for p in pictures]
        x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        out = self(x)
        chance = out["centres"].sigmoid()
        # One thing has one centre, whatever it may be taken for.
        best, what = chance.max(dim=1)
        peaks = best == F.max_pool2d(best[:, None], 5, 1, 2)[:, 0]
        found: list[list[Seen]] = [[] for _ in pictures]
        for n, row, column in ((best > SURE) & peaks).nonzero().tolist():
            reading = tuple(
                out[part][n, :, row, column].softmax(dim=0).numpy()
                for part in ("first", "second", "pattern")
            )
            found[n].append(
                Seen(
                    OBJECTS[int(what[n, row, column])],
                    look_of(*(int(chances.argmax()) for chances in reading)),
                    (column + 0.5) * CELL,
                    (row + 0.5) * CELL,
                    reading,
                )
            )
        backgrounds = out["background"].argmax(dim=1).tolist()
        return [
            Verdict(tuple(things), BACKGROUND_NAMES[b])
            for things, b in zip(found, backgrounds, strict=True)
        ]


def look_of(first: int, second: int, pattern: int) -> Look | None:
    """The look of these places in FIRST, SECOND and PATTERNS; None for emoji colours."""
    paint = FIRST[first]
    if paint is None:
        return None
    if SECOND[second] is None or PATTERNS[pattern] == "plain":
        return Look(paint)
    return Look(paint, SECOND[second], PATTERNS[pattern])


def load_judge() -> Judge:
    judge = Judge()
    judge.load_state_dict({k: v.float() if v.is_floating_point() else v
                           for k, v in load_file(WEIGHTS).items()})  # fmt: skip
    return judge.eval()
