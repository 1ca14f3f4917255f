"""The rates of every method, chosen alike: on a concept that the lab does not measure, by the
figure that the lab compares, the hypervolume of the front over the method's knob."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .ablations import Variant, sweep
from .figures import estimate, hypervolume
from .measure import Lab
from .methods import Method, Perfusion
from .recipe import RATES

STEP, FURTHEST = 2.0, 4


def tune(lab: Lab, method: Method, knob: str, values: Sequence[float]) -> dict[str, Any]:
    """Tries a method's rates, halved and doubled until the best is not at an end.

    Args:
        knob, values: what to sweep at each rate.

    Returns the best rate, whether it is at an end all the same, and all that was tried.
    """
    tried: dict[int, dict[str, Any]] = {}
    wanted = {-1, 0, 1}
    while wanted:
        at = {power: _variants(method, STEP**power, knob, values) for power in sorted(wanted)}
        lab.expect([v for variants in at.values() for v in variants], couples=0)
        for power, variants in at.items():
            points = [lab.point(variant) for variant in variants]
            volume = estimate(points, hypervolume)
            tried[power] = {
                "rate": rate_of(variants[0].method),
                "hypervolume": volume.value,
                "hypervolume_interval": volume.interval,
                "points": [point.as_dict() for point in points],
            }
            label, rate = type(method).__name__, tried[power]["rate"]
            print(f"{label}, rate {rate:g}: hypervolume {volume.value:.3f}", flush=True)
        best = max(tried, key=lambda power: tried[power]["hypervolume"])
        # Where nothing has been learned yet, nobody knows in which direction it lies.
        learned = tried[best]["hypervolume"] > 0
        ends = {best - 1, best + 1} if learned else {min(tried) - 1, max(tried) + 1}
        wanted = {power for power in ends - set(tried) if abs(power) <= FURTHEST}
    return {
        "rate": tried[best]["rate"],
        "at_an_end": best in (min(tried), max(tried)),
        "tried": [tried[power] for power in sorted(tried)],
    }


def rate_of(method: Method) -> float:
    """The rate by which a method is known; of Perfusion, that of the values."""
    if isinstance(method, Perfusion):
        return method.settings().value_rate
    rate: float = getattr(method, "rate")  # noqa: B009
    return rate


def _variants(method: Method, factor: float, knob: str, values: Sequence[float]) -> list[Variant]:
    """The method with its rates times a factor, at each setting of its knob."""
    if isinstance(method, Perfusion):
        rates = {name: rate * factor for name, rate in RATES.items()}
        changed: Any = replace(method, training={**method.training, **rates})
    else:
        changed = replace(method, **{"rate": rate_of(method) * factor})
    label = f"{type(method).__name__}, rate {rate_of(changed):g}"
    return sweep(label, changed, knob, values)
