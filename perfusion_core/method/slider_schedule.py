"""Slider values that change while a picture is sampled: recorded, and applied again.

A schedule gives the slider values for each noise level (sigma). It depends on sigma alone. So a
picture whose sliders somebody moved while it was sampled can be made again, whatever sampler asks
for the noise levels, in whatever order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

from ..concept.safetensors_file import shortened
from ..limits import MAX_FIELD, MAX_MOVES
from .settings import SLIDER_RANGES, ConceptSettings


@dataclass(frozen=True)
class Sliders:
    """What can be moved while sampling; see `ConceptSettings`."""

    bias: float
    temperature: float
    strength: float

    def put_into(self, settings: ConceptSettings) -> ConceptSettings:
        """The settings with these sliders."""
        return replace(
            settings, bias=self.bias, temperature=self.temperature, strength=self.strength
        )


def checked_sliders(values: Mapping[str, Any]) -> Sliders:
    """Sliders from numbers that somebody sent. Raises ValueError that names the wrong one."""
    found = {}
    for name, (low, high) in SLIDER_RANGES.items():
        value: Any = values.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # NaN is not between any two.
        if not is_number or not low <= value <= high:
            raise ValueError(f"the {name} is {value!r}; it must be a number from {low} to {high}")
        found[name] = float(value)
    return Sliders(**found)


class SliderSchedule(Protocol):
    """Gives the slider values for each noise level."""

    def at(self, sigma: float) -> Sliders: ...


@dataclass(frozen=True)
class RecordedSliders:
    """A schedule that is known in full: slider values that were recorded, or never change.

    Attributes:
        earlier: (sigma, sliders) in falling order of sigma: these values applied down to that
            noise level, itself included.
        last: the values below all of them.
    """

    earlier: tuple[tuple[float, Sliders], ...]
    last: Sliders

    def at(self, sigma: float) -> Sliders:
        """The slider values at a noise level."""
        return next((sliders for lowest, sliders in self.earlier if sigma >= lowest), self.last)

    def text(self) -> str:
        """`earlier` as `parse_recorded` reads it."""
        # repr: a number that is read back is the same to the last bit.
        return "; ".join(
            f"{lowest!r}: {s.bias!r}, {s.temperature!r}, {s.strength!r}"
            for lowest, s in self.earlier
        )


def parse_recorded(text: str, last: Sliders) -> RecordedSliders:
    """Recorded sliders from their text: "7.4: 0.6, 0.15, 1.0; 2.1: 0.5, 0.15, 1.0".

    Args:
        text: entries apart by semicolons: the lowest sigma at which values applied, then bias,
            temperature and strength.
        last: the values after that.

    Raises ValueError that names the part that cannot be read.
    """
    # Counted before anything is read: the field comes with a graph that may be anybody's.
    parts = list(filter(str.strip, text.split(";")))
    if len(parts) > MAX_MOVES:
        raise ValueError(f"there are {len(parts)} moves; at most {MAX_MOVES} can be done")
    entries: list[tuple[float, Sliders]] = []
    for part in parts:
        numbers = _numbers(part)
        if not numbers or not math.isfinite(numbers[0]):
            shown = shortened(part.strip())
            raise ValueError(
                f'the move "{shown}" cannot be read: write the noise level down to which '
                "sliders held, and then bias, temperature and strength, such as "
                '"7.4: 0.6, 0.15, 1.0", or leave the field empty'
            )
        entries.append(
            (numbers[0], checked_sliders(dict(zip(SLIDER_RANGES, numbers[1:], strict=True))))
        )
    if any(a <= b for (a, _), (b, _) in pairwise(entries)):
        raise ValueError("the moves are out of order: their noise levels must fall")
    return RecordedSliders(tuple(entries), last)


def _numbers(part: str) -> list[float]:
    """The four numbers of one entry; none where it is not written so."""
    if len(part) > MAX_FIELD // MAX_MOVES * 4:  # no four numbers are that long
        return []
    sigma, colon, sliders = part.partition(":")
    try:
        numbers = [float(number) for number in (sigma, *sliders.split(","))]
    except ValueError:
        return []
    return numbers if colon and len(numbers) == 1 + len(SLIDER_RANGES) else []


class LiveSliders:
    """The sliders of one run, which somebody may move while it samples; records what was used.

    A sampler calls `at` from one thread at a time; `offer` may be called from another.

    Args:
        start: the values until the first `offer`.
        on_move: called with the record so far, whenever a step is the first to use offered values.
    """

    def __init__(
        self, start: Sliders, on_move: Callable[[RecordedSliders], None] | None = None
    ) -> None:
        self._on_move = on_move
        self._offered = start  # replaced as a whole, so no lock is needed
        self._lowest = math.inf
        self.recorded = RecordedSliders((), start)

    def offer(self, sliders: Sliders) -> None:
        """Use these values from the next step on."""
        self._offered = sliders

    def at(self, sigma: float) -> Sliders:
        """The slider values at a noise level. A lower one is a new step, which uses offers."""
        if sigma < self._lowest:
            offered, before = self._offered, self.recorded
            if offered != before.last and len(before.earlier) < MAX_MOVES:
                started = math.isfinite(self._lowest)
                done = ((self._lowest, before.last),) if started else ()
                self.recorded = RecordedSliders((*before.earlier, *done), offered)
                if self._on_move is not None:
                    self._on_move(self.recorded)
            self._lowest = sigma
        return self.recorded.at(sigma)
