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

STEP, FURTHEST = 2.0, 4

Powers = tuple[int, int]
"""Of `STEP`: of all rates, and of the word's besides."""


def tune(lab: Lab, method: Method, knob: str, values: Sequence[float]) -> dict[str, Any]:
    """Tries a method's rates, halved and doubled until the best is not at an end.

    Then, where it learns a word beside something else, the same with the word's rate alone.

    Args:
        knob, values: what to sweep at each setting of the rates.

    Returns the best rates, whether they are at an end all the same, and all that was tried.
    """
    tried: dict[Powers, dict[str, Any]] = {}
    best, at_an_end = (0, 0), False
    for axis in (0, 1) if "word_rate" in rates_of(method) else (0,):
        line = {best} & set(tried)
        wanted = {_moved(best, axis, by) for by in (-1, 0, 1)} - line
        while wanted:
            at = {p: _variants(method, p, knob, values) for p in sorted(wanted)}
            lab.expect([v for variants in at.values() for v in variants], groups=0)
            for powers, variants in at.items():
                tried[powers] = _measured(lab, variants)
            line |= wanted
            best = max(sorted(line), key=lambda powers: tried[powers]["hypervolume"])
            low, high = min(line), max(line)
            # Where nothing has been learned yet, nobody knows in which direction it lies.
            learned = tried[best]["hypervolume"] > 0
            ends = (best, best) if learned else (low, high)
            beyond = {_moved(ends[0], axis, -1), _moved(ends[1], axis, 1)} - line
            wanted = {powers for powers in beyond if abs(powers[axis]) <= FURTHEST}
        at_an_end |= best in (low, high)
    return {
        **tried[best]["rates"],
        "at_an_end": at_an_end,
        "tried": [tried[powers] for powers in sorted(tried)],
    }


def rates_of(method: Method) -> dict[str, float]:
    """The method's rate and, where it learns a word beside something else, the word's."""
    if isinstance(method, Perfusion):
        settings = method.settings()
        return {"rate": settings.value_rate, "word_rate": settings.embedding_rate}
    rate, ratio = getattr(method, "rate"), getattr(method, "word_ratio", 0.0)  # noqa: B009
    return {"rate": rate, **({"word_rate": rate * ratio} if ratio else {})}


def _moved(powers: Powers, axis: int, by: int) -> Powers:
    rate, word = powers
    return (rate + by, word) if axis == 0 else (rate, word + by)


def _measured(lab: Lab, variants: Sequence[Variant]) -> dict[str, Any]:
    points = [lab.point(variant) for variant in variants]
    volume = estimate(points, hypervolume)
    method = variants[0].method
    told = _told(method)
    print(f"{told}: hypervolume {volume.value:.3f}", flush=True)
    return {
        "rates": rates_of(method),
        "hypervolume": volume.value,
        "hypervolume_interval": volume.interval,
        "points": [point.as_dict() for point in points],
    }


def _variants(method: Method, powers: Powers, knob: str, values: Sequence[float]) -> list[Variant]:
    """The method with its rates changed, at each setting of its knob."""
    factor, of_word = (STEP**power for power in powers)
    changed: Any
    if isinstance(method, Perfusion):
        now = method.settings()
        rates = {
            "embedding_rate": now.embedding_rate * factor * of_word,
            "value_rate": now.value_rate * factor,
        }
        changed = replace(method, training={**method.training, **rates})
    else:
        fields = {"rate": rates_of(method)["rate"] * factor}
        if of_word != 1:
            fields["word_ratio"] = getattr(method, "word_ratio") * of_word  # noqa: B009
        changed = replace(method, **fields)
    return sweep(_told(changed), changed, knob, values)


def _told(method: Method) -> str:
    rates = (f"{name.replace('_', ' ')} {rate:g}" for name, rate in rates_of(method).items())
    return ", ".join((method.title, *rates))
