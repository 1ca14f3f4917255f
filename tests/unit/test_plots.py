"""The plots show what they say."""

from __future__ import annotations

import math

import pytest
import torch

from perfusion_core.draw.plots import labelled_grid, loss_plot, running_mean


def blue(picture: torch.Tensor) -> torch.Tensor:
    """[H, W]: where the running mean is drawn."""
    red, _, blue_ = picture[0].unbind(-1)
    return (blue_ - red > 0.4) & (red < 0.3)


def test_a_falling_loss_falls_in_the_picture() -> None:
    picture = loss_plot([1 / (1 + n / 20) for n in range(200)])
    assert picture.shape == (1, 320, 640, 3)
    line = blue(picture)
    heights = [float(line[:, x].nonzero().float().mean()) for x in (70, 200, 400, 600)]
    assert heights == sorted(heights)
    assert heights[-1] - heights[0] > 100


@pytest.mark.parametrize("losses", [[], [0.5], [0.0, 0.0], [1.0, math.nan, 0.5]])
def test_anything_that_training_gives_can_be_drawn(losses: list[float]) -> None:
    picture = loss_plot(losses)
    assert bool(picture.isfinite().all())
    assert bool(blue(picture).any()) == bool(losses)


def test_the_running_mean_is_over_the_last_tenth() -> None:
    values = [float(n) for n in range(40)]
    assert running_mean(values)[:5] == [0.0, 0.5, 1.0, 1.5, 2.5]
    assert running_mean([3.0]) == [3.0]


def test_a_grid_holds_its_cells_in_order() -> None:
    colours = torch.rand(6, 1, 1, 3)
    grid = labelled_grid(colours.expand(-1, 40, 64, -1), ["a", "b", "c"], ["x", "y"], "title")
    top, left = 4 * 14, 8 * 14
    for n, colour in enumerate(colours[:, 0, 0]):
        y, x = top + n // 3 * 42 + 20, left + n % 3 * 66 + 32
        assert torch.allclose(grid[0, y, x], colour, atol=1 / 255)


def test_a_long_label_is_broken_and_the_cells_move_down() -> None:
    cells = torch.rand(2, 40, 64, 3)
    short = labelled_grid(cells, ["a", "b"], ["x"], "title")
    long = labelled_grid(cells, ["a photo of a teddy on a beach", "b"], ["x"], "title")
    moved = long.shape[1] - short.shape[1]
    assert moved > 0
    assert torch.equal(long[:, -42:], short[:, -42:])
