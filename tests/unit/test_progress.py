"""The time that is left, in words."""

from __future__ import annotations

import pytest

from perfusion_core.learn.time_left import time_left


@pytest.mark.parametrize(
    ("seconds", "done", "total", "expected"),
    [
        (10, 50, 200, "30 s left"),
        (100, 50, 200, "5 min 0 s left"),
        (3661, 1, 2, "1 h 1 min left"),
        (7, 200, 200, "0 s left"),
        (0, 0, 200, "0 s left"),
    ],
)
def test_what_is_left_takes_as_long_as_what_was(
    seconds: float, done: int, total: int, expected: str
) -> None:
    assert time_left(seconds, done, total) == expected
