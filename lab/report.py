"""What the lab found: as JSON, as a table in Markdown, as plots and a contact sheet."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from tools.steps import write_atomic

from .ablations import Ablation, Variant
from .contact_sheet import Row, contact_sheet
from .figures import Estimate, Point, estimate, hypervolume
from .measure import Group, Lab, Together
from .plots import by_seconds, pareto
from .subjects import Subject
from .tables import LORA, WANTED_BOTH, WANTED_BYTES, WANTED_VOLUME, tables


@dataclass(frozen=True)
class Contender:
    """One method beside the others.

    Attributes:
        points: over its knob.
        best: the point of the largest identity times text alignment: chosen on single subjects, so
            that the composed pictures choose nothing.
        together: kind of group ("couples", "triples" ...) -> what became of several subjects in
            one picture, at the best point's knob; empty where nothing was composed.
        rival: False for ourselves, and for the same described in words.
    """

    label: str
    variants: Sequence[Variant]
    points: Sequence[Point]
    seconds: float
    bytes: int
    together: Mapping[str, Together] = field(default_factory=dict)
    rival: bool = True

    @property
    def both(self) -> Point | None:
        """The couples' point; None where nothing was composed."""
        couples = self.together.get("couples")
        return couples.point if couples else None

    @property
    def best(self) -> int:
        products = [float(point.means.prod()) for point in self.points]
        return products.index(max(products))

    @property
    def volume(self) -> Estimate:
        return estimate(self.points, hypervolume)

    def as_dict(self) -> dict[str, Any]:
        volume = self.volume
        entry = {
            "name": self.label,
            "hypervolume": volume.value,
            "hypervolume_interval": volume.interval,
            "best": self.points[self.best].as_dict(),
            "train_seconds": round(self.seconds, 1),
            "file_bytes": self.bytes,
            "points": [point.as_dict() for point in self.points],
        }
        if self.both is not None:
            share = estimate([self.both], lambda means: means[0, 1])
            entry |= {
                "both_identities": share.value,
                "both_identities_interval": share.interval,
                "both_pictures": self.both.pictures,
            }
        if self.together:
            entry["together"] = {kind: _of_group(found) for kind, found in self.together.items()}
        return entry


def _of_group(found: Together) -> dict[str, Any]:
    every = estimate([found.point], lambda means: means[0, 1])
    return {
        "all": every.value,
        "all_interval": every.interval,
        "all_by_group": found.point.marks[..., 1].mean(axis=1).round(4).tolist(),
        "text_alignment": round(float(found.point.means[0]), 4),
        "pictures": found.point.pictures,
        "fates": found.shares,
    }


@dataclass
class Report:
    """Everything, as it is found; written again after every part.

    Attributes:
        claims: how many claims the whole lab holds against what is measured, whichever part of
            them this run does: what their intervals are corrected for.
    """

    out: Path
    identity: str
    about: dict[str, Any]
    claims: int = 1
    ablations: list[dict[str, Any]] = field(default_factory=list)
    contenders: list[dict[str, Any]] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    unused: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, Any] = field(default_factory=dict)
    plots: list[str] = field(default_factory=list)

    def add_ablation(self, lab: Lab, ablation: Ablation, couples: Sequence[Group] = ()) -> None:
        """Measure an ablation, plot it, say what it says.

        Args:
            couples: the subjects of one that is composed.
        """

        def measured_of(variant: Variant) -> Point:
            return lab.together(variant, couples).point if ablation.composed else lab.point(variant)

        series = {
            label: [measured_of(variant) for variant in variants]
            for label, variants in ablation.series.items()
        }
        points = {point.name: point for measured in series.values() for point in measured}
        claims = []
        for claim in ablation.claims:
            difference = claim.difference(points, self.claims)
            claims.append(
                {
                    "claim": claim.text,
                    "measure": claim.measure,
                    "difference": difference.value,
                    "interval": difference.interval,
                    "by_subject": claim.by_subject(points),
                    "verdict": difference.verdict,
                }
            )
        self._plot(ablation.name, series, "both identities" if ablation.composed else "")
        self.ablations.append(
            {
                "name": ablation.name,
                "claims": claims,
                "series": {k: [p.as_dict() for p in v] for k, v in series.items()},
            }
        )

    def add_contenders(self, contenders: Sequence[Contender]) -> None:
        """The first is ours, the others its rivals, and the same described in words."""
        self._plot("rivals", {c.label: c.points for c in contenders})
        self.contenders = [contender.as_dict() for contender in contenders]
        self.comparison = compare([c for n, c in enumerate(contenders) if c.rival or not n])
        words = next((c for c in contenders[1:] if not c.rival), None)
        if words is not None:
            self.comparison["of_words"] = of_words(contenders[0], words)

    def add_curves(self, curves: dict[str, list[dict[str, Any]]]) -> None:
        """Hypervolume by seconds of training, of every method."""
        self.seconds = curves
        by_seconds(curves, self.out / "lab_seconds.png")
        self.plots.append("lab_seconds.png")

    def write(self, lab: Lab, seconds: float) -> None:
        """lab.json and lab.md, after so many seconds of this run."""
        self.about |= {
            "seconds": round(seconds),
            "seconds_of_work": round(sum(lab.cache.seconds.values())),
            "from_other_code": len(lab.cache.other_code),
        }
        write_atomic(self.out / "lab.json", json.dumps(self.as_dict(), indent=1) + "\n")
        write_atomic(self.out / "lab.md", tables(self.as_dict()))

    def as_dict(self) -> dict[str, Any]:
        """The contents of lab.json."""
        return {
            **self.about,
            "identity": self.identity,
            "ablations": self.ablations,
            "methods": self.contenders,
            "comparison": self.comparison,
            "unused": self.unused,
            "curves": self.seconds,
            "plots": self.plots,
        }

    def _plot(self, name: str, series: Mapping[str, Sequence[Point]], identity: str = "") -> None:
        file = f"lab_{name.replace(' ', '_')}.png"
        pareto(name, identity or self.identity, series, self.out / file)
        self.plots.append(file)


def compare(contenders: Sequence[Contender]) -> dict[str, Any]:
    """Ours, the first, against the best of the others; ratios are None where the other is 0."""
    own, *rivals = contenders
    best = max(rivals, key=lambda rival: rival.volume.value)
    points = [point for contender in contenders for point in contender.points]
    ends = [len(own.points)]
    for rival in rivals:
        ends.append(ends[-1] + len(rival.points))

    def volumes(means: Any) -> tuple[float, float]:
        others = [hypervolume(means[a:b]) for a, b in pairwise(ends)]
        return hypervolume(means[: ends[0]]), max(others)

    def ahead(means: Any) -> float:
        ours, others = volumes(means)
        return ours - others

    difference = estimate(points, ahead)
    ratio = _ratio(own.volume.value, best.volume.value)
    bytes_ratio = own.bytes / best.bytes
    found = {
        "best_rival": best.label,
        "volume_ratio": ratio,
        "volume_ratio_interval": _ratio_interval(points, volumes),
        "volume_difference": difference.value,
        "volume_difference_interval": difference.interval,
        "bytes_ratio": round(bytes_ratio, 5),
        "volume_reached": _reached(own.volume.value, best.volume.value, WANTED_VOLUME)
        and bytes_ratio <= WANTED_BYTES,
    }
    lora = next((rival for rival in rivals if rival.label == LORA), None)
    if own.both is not None and lora is not None and lora.both is not None:
        both, stacked = float(own.both.means[1]), float(lora.both.means[1])
        found |= {
            "both_ratio": _ratio(both, stacked),
            "both_ratio_interval": _ratio_interval([own.both, lora.both], lambda m: m[:, 1]),
            "both_reached": _reached(both, stacked, WANTED_BOTH),
        }
    return found


LEAST_CEILING = 0.5  # groups that the model paints more rarely when asked in words are left out


def of_words(own: Contender, words: Contender) -> dict[str, Any]:
    """Kind of group -> our share of pictures with all of them, in that of the same in words."""
    found = {}
    for kind, described in words.together.items():
        ceiling = described.point.marks[..., 1].mean(axis=1)
        kept = ceiling >= LEAST_CEILING
        if kept.any() and kind in own.together:
            ours = own.together[kind].point.marks[kept]
            ratio = float(ours[..., 1].mean() / ceiling[kept].mean())
            found[kind] = {"ratio": round(ratio, 3), "groups": int(kept.sum()), "of": len(kept)}
    return found


def _ratio(ours: float, other: float) -> float | None:
    return round(ours / other, 3) if other > 0 else None


def _ratio_interval(points: Sequence[Point], parts: Callable[[Any], Any]) -> list[float] | None:
    """Of the ratio of two figures; None where the second may as well be 0."""

    def ratio(means: Any) -> float:
        ours, other = parts(means)
        return float(ours / other) if other > 0 else math.inf

    with np.errstate(invalid="ignore"):
        interval = estimate(points, ratio).interval
    return interval if all(map(math.isfinite, interval)) else None


def _reached(ours: float, other: float, wanted: float) -> bool:
    return ours > 0 and ours >= wanted * other


def sheet(lab: Lab, contenders: Sequence[Contender], couples: Sequence[Group], path: Path) -> None:
    """Each method's best point on the first two subjects, alone and in one picture.

    The first picture of every prompt is shown, chosen by place alone.
    """
    rows = []
    shown: list[Sequence[Subject]] = [[subject] for subject in lab.subjects[:2]]
    for subjects in (*shown, *couples[:1]):
        title = " and ".join(subject.name for subject in subjects)
        if len(subjects) == 1:
            rows.append(Row(f"{title}: to learn from", list(subjects[0].pictures)[:8]))
        for one in contenders:
            variant = one.variants[one.best]
            asked = [prompt.text for prompt in lab.asked(variant, subjects)]
            rows.append(Row(f"{title}: {variant.name}", lab.strip(variant, subjects), asked))
    contact_sheet(rows).save(path, quality=85, optimize=True)


def costs(lab: Lab, variants: Sequence[Variant]) -> tuple[float, int]:
    """Mean seconds of a training and mean bytes of its file, of a method."""
    trained = [lab.learned(variants[0].method, subject) for subject in lab.subjects]
    return mean(t.seconds for t in trained), round(mean(t.bytes for t in trained))


def machine() -> str:
    """What it runs on, for a reader."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores), torch {torch.__version__}"
