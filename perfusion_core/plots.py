"""Plots as pictures, drawn with what the host has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

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
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.reshape(1, _SIZE[1], _SIZE[0], 3).float() / 255
