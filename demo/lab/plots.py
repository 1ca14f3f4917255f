"""A Pareto plot of identity against text alignment for each ablation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def pareto(title: str, points: Sequence[dict[str, Any]], path: Path) -> None:
    """Points with their confidence intervals; up and to the right is better."""
    figure, axes = plt.subplots(figsize=(5, 4.2), dpi=120)
    for point in points:
        x, y = point["text_alignment"], point["identity"]
        (x0, x1), (y0, y1) = point["text_alignment_interval"], point["identity_interval"]
        errors = {"xerr": [[x - x0], [x1 - x]], "yerr": [[y - y0], [y1 - y]]}
        axes.errorbar(x, y, fmt="o", capsize=2, **errors)
        axes.annotate(point["name"], (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
        xlabel="text alignment (share of pictures)",
        ylabel="identity (share of pictures)",
        title=title,
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
