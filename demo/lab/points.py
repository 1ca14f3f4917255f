"""Measured points: shares of pictures that are right, with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Point:
    """One way of doing it, measured on pictures of several concepts.

    Attributes:
        name: such as "bias 0.6".
        identity: for each picture, whether it shows the concept.
        alignment: for each picture, whether it shows everything else that the prompt names.
        concepts: for each picture, of which concept it is.
    """

    name: str
    identity: Sequence[bool]
    alignment: Sequence[bool]
    concepts: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        identity, alignment = np.array(self.identity), np.array(self.alignment)
        return {
            "name": self.name,
            "samples": len(identity),
            "identity": round(float(identity.mean()), 4),
            "identity_interval": interval(identity, self.concepts),
            "text_alignment": round(float(alignment.mean()), 4),
            "text_alignment_interval": interval(alignment, self.concepts),
        }


def interval(values: np.ndarray, groups: Sequence[str]) -> list[float]:
    """Bootstrap interval of the mean, pictures redrawn within each concept.

    So it says how sure the figure is for these concepts, not for any concept.
    """
    rng = np.random.default_rng(0)
    names = np.array(groups)
    members = [values[names == name].astype(float) for name in sorted(set(groups))]
    means = np.zeros(RESAMPLES)
    for part in members:
        drawn = rng.integers(len(part), size=(RESAMPLES, len(part)))
        means += part[drawn].sum(axis=1)
    means /= len(values)
    tail = (1 - CONFIDENCE) / 2
    return [round(float(v), 4) for v in np.quantile(means, [tail, 1 - tail])]
