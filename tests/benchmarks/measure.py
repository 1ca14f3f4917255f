"""Timing things in turn, and the figures that come of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tools.steps import write_atomic

# Seconds, of one or several repetitions.
Timed = Callable[[], Sequence[float]]


@dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
        name: what it is called from run to run.
        what: what was measured, for a reader.
        ours, other: the two medians, in `unit`.
        against: what the other is.
        unit: of the medians; "" for a plain number.
        runs: how often each was measured.
    """

    name: str
    what: str
    ours: float
    other: float
    against: str
    unit: str = "ms"
    runs: int = 1

    @property
    def ratio(self) -> float:
        return self.ours / self.other

    def entry(self) -> dict[str, Any]:
        """As `results.json` has it."""
        return {
            "name": self.name,
            "what": self.what,
            "ratio": round(self.ratio, 4),
            "against": self.against,
            "unit": self.unit,
            "runs": self.runs,
            "median": round(self.ours, 3),
            "median_against": round(self.other, 3),
        }


def timed(action: Callable[[], object]) -> Timed:
    """Runs `action` once and says how long it took."""

    def once() -> list[float]:
        begin = time.perf_counter()
        action()
        return [time.perf_counter() - begin]

    return once


def in_turn(candidates: Mapping[str, Timed], runs: int, warmups: int = 1) -> dict[str, float]:
    """The median seconds of each candidate, measured one after the other in every round.

    Every second round goes backwards, so that none always follows the same other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-warmups, runs):
        order = list(candidates) if number % 2 else list(reversed(candidates))
        for name in order:
            found = candidates[name]()
            if number >= 0:
                seconds[name] += found
    return {name: median(found) for name, found in seconds.items()}


def table(results: Iterable[Result]) -> str:
    """The figures for a reader, a line each."""
    rows = [("", "ours", "other", "ratio", "runs", "against")]
    rows += [
        (
            result.name,
            f"{result.ours:,.4g} {result.unit}",
            f"{result.other:,.4g} {result.unit}",
            f"{result.ratio:.3f}",
            str(result.runs),
            f"{result.against}; {result.what}",
        )
        for result in results
    ]
    widths = [max(len(row[n]) for row in rows) for n in range(5)]
    lines = []
    for name, *numbers, against in rows:
        cells = [name.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([*cells, against]))
    return "\n".join(lines)


def write(results: Iterable[Result], path: Path) -> None:
    """All figures as a list in JSON."""
    write_atomic(path, json.dumps([result.entry() for result in results], indent=1) + "\n")
