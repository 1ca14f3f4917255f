"""Fronts of identity against text alignment: up and to the right is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from .figures import Point, front

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito


def pareto(title: str, identity: str, series: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Each series' points with their confidence intervals, and a line along its front.

    Numbers beside points are the settings of the series' knob.

    Args:
        identity: what the mark of identity is.
        series: label -> points.
    """
    figure, axes = plt.subplots(figsize=(6.4, 5.6), dpi=120)
    for colour, (label, points) in zip(COLOURS * 3, series.items(), strict=False):
        means = np.array([point.means for point in points])
        along = means[front(means)]
        axes.plot(along[:, 0], along[:, 1], color=colour, alpha=0.5)
        knob = points[0].name.rpartition(", ")[2].rpartition(" ")[0]
        axes.plot([], [], "o", color=colour, label=f"{label}, by {knob}")
        for point, (x, y) in zip(points, means, strict=True):
            found = point.as_dict()
            errors = {
                axis: np.abs(np.array(found[f"{name}_interval"])[:, None] - value)
                for axis, name, value in (("xerr", "text_alignment", x), ("yerr", "identity", y))
            }
            axes.errorbar(x, y, color=colour, alpha=0.4, capsize=2, elinewidth=0.8, **errors)
            axes.plot(x, y, "o", color=colour)
            setting = point.name.rpartition(" ")[2]
            axes.annotate(setting, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
        xlabel="text alignment (share of pictures)",
        ylabel=identity,
        title=title,
    )
    axes.annotate(
        "better", (0.995, 0.995), (0.88, 0.9), xycoords="axes fraction", fontsize=8, color="gray",
        ha="center", va="center", arrowprops={"arrowstyle": "->", "color": "gray"},
    )  # fmt: skip
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def by_seconds(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Each method's hypervolume against its seconds of training, with intervals."""
    figure, axes = plt.subplots(figsize=(6.4, 4.6), dpi=120)
    for colour, (label, points) in zip(COLOURS * 3, curves.items(), strict=False):
        x = [point["seconds"] for point in points]
        y = np.array([point["hypervolume"] for point in points])
        ends = np.array([point["interval"] for point in points])
        errors = np.abs(ends - y[:, None]).T
        axes.errorbar(x, y, yerr=errors, fmt="o-", color=colour, capsize=2, label=label)
    axes.set(
        xscale="log",
        ylim=(0, 1),
        xlabel="seconds of training",
        ylabel="hypervolume of the front",
        title="how good after how long",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
