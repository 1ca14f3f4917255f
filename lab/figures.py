"""Figures from marks: fronts, their hypervolume, bootstrap confidence intervals.

A picture has two marks between 0 and 1, text alignment and identity. All points of a comparison are
measured on the same concepts, prompts and noise, so that picture n of one belongs to picture n of
the other: the bootstrap redraws them together, and a difference is as sure as it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES, CONFIDENCE = 10_000, 0.95
REFERENCE = (0.0, 0.0)  # of every hypervolume: no text alignment, no identity

Statistic = Callable[[np.ndarray], float]
"""From the mean marks [points, 2] (text alignment, identity) to a figure."""


@dataclass(frozen=True)
class Point:
    """One way of doing it, measured.

    Attributes:
        name: such as "bias 0.6".
        marks: (text alignment, identity) of every picture [concepts, pictures of each, 2].
    """

    name: str
    marks: np.ndarray

    @property
    def pictures(self) -> int:
        """How many pictures it was measured on."""
        return int(self.marks.shape[0] * self.marks.shape[1])

    @property
    def means(self) -> np.ndarray:
        """Mean text alignment and identity [2]."""
        means: np.ndarray = self.marks.mean(axis=(0, 1))
        return means

    def as_dict(self) -> dict[str, Any]:
        """The means with their intervals, for the report."""
        text = estimate([self], lambda m: m[0, 0])
        identity = estimate([self], lambda m: m[0, 1])
        return {
            "name": self.name,
            "samples": self.pictures,
            "identity": identity.value,
            "identity_interval": identity.interval,
            "text_alignment": text.value,
            "text_alignment_interval": text.interval,
        }


@dataclass(frozen=True)
class Estimate:
    """A figure and its bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> list[float]:
        return [self.low, self.high]

    @property
    def verdict(self) -> str:
        """What a difference says: "holds", "fails", or with zero in the interval how large it is at
        most."""
        if self.low > 0:
            return "holds"
        return "fails" if self.high < 0 else f"no difference above {self.excluded:.2f}"

    @property
    def excluded(self) -> float:
        """The smallest size of an effect, in either direction, that the interval rules out."""
        return max(abs(self.low), abs(self.high))


def hypervolume(means: np.ndarray) -> float:
    """Area that points [n, 2] dominate, above the reference point (0, 0)."""
    area = height = 0.0
    for x, y in sorted(means.tolist(), reverse=True):
        # From the right to the left: only what rises above all points further right adds area.
        if y > height:
            area += (x - REFERENCE[0]) * (y - height)
            height = y
    return area


def front(means: np.ndarray) -> list[int]:
    """Which of the points [n, 2] no other one dominates, from the left to the right."""
    order = sorted(range(len(means)), key=lambda n: tuple(means[n]), reverse=True)
    best, kept = -1.0, []
    for n in order:
        if means[n, 1] > best:
            best = means[n, 1]
            kept.append(n)
    return kept[::-1]


@cache
def _redrawn(concepts: int, pictures: int, seed: int) -> np.ndarray:
    """How much every picture counts in every resample [resamples, concepts * pictures]."""
    rng = np.random.default_rng(seed)
    shares = np.zeros((RESAMPLES, concepts * pictures))
    for row in shares:
        of = rng.integers(concepts, size=concepts)[:, None]
        which = rng.integers(pictures, size=(concepts, pictures))
        np.add.at(row, (of * pictures + which).ravel(), 1 / row.size)
    return shares


def _tail(count: int, comparisons: int) -> float:
    """Which share of the resamples lies beyond each end of an interval.

    A bootstrap of few is too narrow: its spread is that of n and not of n - 1, and it takes the
    normal distribution for Student's. So the tail is the one that the normal distribution has
    beyond sqrt(n / (n - 1)) times Student's quantile (Hesterberg 2015, "expanded percentiles").

    Args:
        count: how many were redrawn.
    """
    tail = (1 - CONFIDENCE) / 2 / comparisons
    if count < 2:
        return tail
    quantile = stats.t.ppf(tail, count - 1) * np.sqrt(count / (count - 1))
    return float(stats.norm.cdf(quantile))


def estimate(
    points: Sequence[Point], statistic: Statistic, seed: int = 0, comparisons: int = 1
) -> Estimate:
    """A statistic of points that were measured alike, with its bootstrap interval.

    Args:
        comparisons: how many such figures are looked at together. All their intervals hold the
            truth in 95 of 100 cases (Bonferroni: each at 1 - 0.05 / comparisons).

    Concepts are redrawn with replacement, and pictures within each: the interval speaks of any
    concept of this kind, as far as a few can: of few that truly differ it is too narrow (see
    docs/lab.md), and with one concept it speaks of that one alone. A concept's training is redrawn
    with it; the same concept trained with other seeds is not measured.

    Raises ValueError for points that were not measured on the same pictures.
    """
    shapes = {point.marks.shape for point in points}
    if len(shapes) != 1:
        raise ValueError(f"points of different pictures cannot be compared: {sorted(shapes)}")
    marks = np.stack([point.marks for point in points])
    _, concepts, pictures, _ = marks.shape
    shares = _redrawn(concepts, pictures, seed)
    means = np.einsum("rn,pnm->rpm", shares, marks.reshape(len(marks), -1, 2))
    drawn = [statistic(redrawn) for redrawn in means]
    tail = _tail(concepts if concepts > 1 else pictures, comparisons)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    value = statistic(marks.mean(axis=(1, 2)))
    return Estimate(round(float(value), 4), round(float(low), 4), round(float(high), 4))
