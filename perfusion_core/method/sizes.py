"""Pictures of any size to the few sizes that a model is trained at: aspect buckets."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

# Side in pixels of what most models have whole cells of: latents of one value for 8 x 8 pixels.
CELL = 8


def bucket(width: int, height: int, resolution: int, cell: int = CELL) -> tuple[int, int]:
    """The size (width, height) to train a picture at: its shape, about `resolution` squared large.

    Sides are multiples of an eighth of the resolution, at most of 64 pixels, and of `cell`, so that
    pictures of nearly one shape share a size, and at most four times as long as wide.
    """
    step = max(cell, min(64, resolution // 8) // cell * cell)
    aspect = min(max(width / height, 1 / 4), 4.0)

    def side(length: float) -> int:
        return max(step, round(length / step) * step)

    return side(resolution * math.sqrt(aspect)), side(resolution / math.sqrt(aspect))


def whole_cells(width: int, height: int, cell: int = CELL) -> tuple[int, int]:
    """The largest size within (width, height) of whole cells of `cell` pixels."""
    return max(cell, width // cell * cell), max(cell, height // cell * cell)


def fit(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture or mask [C, H, W] filling `size` (width, height), the rest cut off evenly."""
    width, height = size
    scale = max(width / picture.shape[2], height / picture.shape[1])
    wide, high = (
        max(width, round(picture.shape[2] * scale)),
        max(height, round(picture.shape[1] * scale)),
    )
    if (wide, high) != (picture.shape[2], picture.shape[1]):
        scaled = torch.nn.functional.interpolate(
            picture[None].float(), size=(high, wide), mode="bicubic", antialias=True
        )
        picture = scaled[0].clamp(0, 1)
    left, top = (wide - width) // 2, (high - height) // 2
    return picture[:, top : top + height, left : left + width]


def cut_off(width: int, height: int, size: tuple[int, int]) -> float:
    """Share of a picture's area that `fit` cuts off."""
    scale = max(size[0] / width, size[1] / height)
    return 1 - size[0] * size[1] / (width * scale * height * scale)


def at_most(pictures: Tensor, side: int) -> Tensor:
    """Pictures [N, H, W, C] made smaller, where they are larger, to sides of at most `side`."""
    height, width = pictures.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1:
        return pictures
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = rearrange(pictures, "n h w c -> n c h w").float()
    smaller = torch.nn.functional.interpolate(pixels, size=size, mode="area")
    shown: Tensor = rearrange(smaller, "n c h w -> n h w c")
    return shown
