"""Plots as pictures, drawn with what ComfyUI has."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from ..limits import MAX_GRID

_SIZE = (640, 320)
_MARGIN = (56, 16, 16, 32)  # left, top, right, bottom
_LOSS, _MEAN, _INK = (176, 196, 222), (31, 88, 180), (64, 64, 64)


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of the last tenth of all values, at each value."""
    window = max(1, len(values) // 10)
    means, total = [], 0.0
    for n, value in enumerate(values):
        total += value - (values[n - window] if n >= window else 0.0)
        means.append(total / min(n + 1, window))
    return means


def loss_plot(losses: Sequence[float]) -> Tensor:
    """The losses of a training as a picture [1, H, W, 3], 0 to 1: each, and their running mean."""
    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = _MARGIN
    width, height = _SIZE[0] - left - right, _SIZE[1] - top - bottom
    draw.line([(left, top), (left, top + height), (left + width, top + height)], fill=_INK)
    finite = [value for value in losses if math.isfinite(value)]
    if finite:
        low, high = min(0.0, *finite), max(finite) or 1.0

        def point(n: int, value: float) -> tuple[float, float]:
            x = left + width * (n + 0.5) / len(losses)
            return x, top + height * (1 - (value - low) / (high - low))

        for values, colour, thick in ((losses, _LOSS, 1), (running_mean(losses), _MEAN, 2)):
            points = [point(n, value) for n, value in enumerate(values) if math.isfinite(value)]
            draw.line(points, fill=colour, width=thick)
            if len(points) == 1:
                draw.ellipse(
                    [(points[0][0] - 2, points[0][1] - 2), (points[0][0] + 2, points[0][1] + 2)],
                    fill=colour,
                )
        for value in (low, (low + high) / 2, high):
            draw.text((left - 6, point(0, value)[1]), f"{value:.3f}", fill=_INK, anchor="rm")
        draw.text((left, top + height + 8), "1", fill=_INK)
        draw.text((left + width, top + height + 8), str(len(losses)), fill=_INK, anchor="ra")
    draw.text((left + width / 2, top + height + 8), "step", fill=_INK, anchor="ma")
    draw.text((left + 8, top), "loss", fill=_INK)
    return to_tensor(image)


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as ComfyUI's IMAGE [1, H, W, 3], 0 to 1."""
    data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.reshape(1, image.height, image.width, 3).float() / 255


def labelled_grid(cells: Tensor, columns: Sequence[str], rows: Sequence[str], title: str) -> Tensor:
    """Pictures [rows x columns, H, W, 3] in a grid with labelled axes, as one picture.

    A column's label is broken into lines where it is wider than the column. Where the grid would
    have more than `MAX_GRID` pixels, the pictures in it are smaller, and the title says how much.
    """
    height, width = cells.shape[1:3]
    shape = {"row": len(rows), "column": len(columns)}
    grid = rearrange(cells, "(row column) h w c -> row column h w c", **shape)
    scale = min(1.0, math.sqrt(MAX_GRID / (len(columns) * len(rows) * height * width)))
    if scale < 1:
        height, width = max(1, int(height * scale)), max(1, int(width * scale))
        title += f" (pictures at {scale:.0%} of their size)"
    size = max(14, min(32, width // 16))
    lines = [textwrap.wrap(label, max(8, int(width / size * 1.9))) for label in columns]
    left, gap = size * 8, max(2, size // 6)
    top = size * (3 + max([1, *map(len, lines)]))
    sheet = Image.new(
        "RGB", (left + len(columns) * (width + gap), top + len(rows) * (height + gap)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill=_INK, font_size=size)
    for c, broken in enumerate(lines):
        centre = left + c * (width + gap) + width / 2
        for above, line in enumerate(reversed(broken)):
            y = top - size / 2 - above * size
            draw.text((centre, y), line, fill=_INK, font_size=size, anchor="ms")
    for r, label in enumerate(rows):
        y = top + r * (height + gap)
        draw.text((left - size / 2, y + height / 2), label, fill=_INK, font_size=size, anchor="rm")
        for c in range(len(columns)):
            array = (grid[r, c].cpu().clamp(0, 1) * 255).round().to(torch.uint8)
            picture = Image.fromarray(array.numpy())
            if scale < 1:
                picture = picture.resize((width, height))
            sheet.paste(picture, (left + c * (width + gap), y))
    return to_tensor(sheet)
