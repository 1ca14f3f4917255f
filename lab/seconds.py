"""How good each method is after how many seconds of training: the curve that users care about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .ablations import Variant
from .figures import estimate, hypervolume
from .measure import Lab
from .report import costs

SHARES = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the steps that a method takes by default


def shortened(variants: Sequence[Variant], share: float) -> list[Variant]:
    """The same, trained for a share of their steps."""
    return [
        Variant(
            variant.name if share == 1 else f"{share:g} of the steps, {variant.name}",
            replace(variant.method, steps=max(1, round(variant.method.steps * share))),
            variant.use,
        )
        for variant in variants
    ]


def curves(
    lab: Lab, contenders: Mapping[str, Sequence[Variant]]
) -> dict[str, list[dict[str, Any]]]:
    """Label -> hypervolume and seconds of training at every share of the steps."""
    found: dict[str, list[dict[str, Any]]] = {}
    for label, variants in contenders.items():
        found[label] = []
        for share in SHARES:
            part = shortened(variants, share)
            volume = estimate([lab.point(variant) for variant in part], hypervolume)
            found[label].append(
                {
                    "steps": part[0].method.steps,
                    "seconds": round(costs(lab, part)[0], 1),
                    "hypervolume": volume.value,
                    "interval": volume.interval,
                }
            )
    return found
