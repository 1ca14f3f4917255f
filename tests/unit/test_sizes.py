"""Pictures of any size to the sizes that a model is trained at."""

from __future__ import annotations

import pytest
import torch

from perfusion_core.method.sizes import at_most, bucket, cut_off, fit, whole_cells


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((512, 512), 512, (512, 512)),
        ((3000, 3000), 512, (512, 512)),
        ((4000, 3000), 512, (576, 448)),
        ((3000, 4000), 512, (448, 576)),
        ((1920, 1080), 1024, (1344, 768)),
        ((10000, 100), 512, (1024, 256)),
        ((130, 120), 128, (128, 128)),
        ((20, 30), 16, (16, 16)),
    ],
)
def test_a_bucket_has_the_pictures_shape_and_the_wanted_area(
    size: tuple[int, int], resolution: int, expected: tuple[int, int]
) -> None:
    assert bucket(*size, resolution) == expected


@pytest.mark.parametrize("cell", [16, 32])
def test_a_model_of_larger_cells_gets_whole_ones(cell: int) -> None:
    assert whole_cells(1000, 1000, cell) == (992, 992)
    assert whole_cells(5, 40, cell) == (cell, 40 // cell * cell)
    for size in ((1000, 750), (720, 1280), (333, 1000)):
        for resolution in (64, 200, 512, 960):
            assert {side % cell for side in bucket(*size, resolution, cell)} == {0}


def test_nearly_one_shape_is_one_size() -> None:
    assert len({bucket(1000 + n, 750, 512) for n in range(0, 60, 10)}) == 1


def test_whole_cells_lie_within() -> None:
    assert whole_cells(100, 71) == (96, 64)
    assert whole_cells(5, 8) == (8, 8)


def test_fitting_cuts_off_evenly_and_keeps_what_already_fits() -> None:
    picture = torch.rand(3, 20, 30)
    assert torch.equal(fit(picture, (30, 20)), picture)
    assert torch.equal(fit(picture, (20, 20)), picture[:, :, 5:25])
    assert cut_off(30, 20, (20, 20)) == pytest.approx(1 / 3)
    assert cut_off(30, 20, (60, 40)) == 0
    halves = torch.zeros(1, 40, 80)
    halves[..., 40:] = 1
    small = fit(halves, (20, 10))
    assert small.shape == (1, 10, 20)
    assert float(small[..., :8].max()) < 0.01
    assert float(small[..., 12:].min()) > 0.99
    assert fit(torch.rand(3, 7, 5), (64, 64)).shape == (3, 64, 64)


def test_only_larger_pictures_are_made_smaller() -> None:
    pictures = torch.rand(2, 30, 60, 3)
    assert at_most(pictures, 60) is pictures
    small = at_most(pictures, 20)
    assert small.shape == (2, 10, 20, 3)
    assert torch.allclose(small[0, 0, 0], pictures[0, :3, :3].mean(dim=(0, 1)))
