"""The charts of a report as SVG: the front of a sweep, the gates of a prompt, a training's loss."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = ("#0072B2", "#D55E00")  # told apart by most eyes (Okabe and Ito)


def front_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean scores of the pictures at each bias, and of the ordinary word (bias None)."""
    found: dict[float | None, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["identity"] is not None:
            found.setdefault(row["bias"], []).append(row)
    return [
        {
            "bias": bias,
            "identity": round(sum(row["identity"] for row in some) / len(some), 4),
            "text": round(sum(row["text"] for row in some) / len(some), 4),
        }
        for bias, some in found.items()
    ]


def front_chart(points: Sequence[Mapping[str, Any]], best: float) -> str:
    """Likeness to the training pictures over likeness to the prompt, a point for each bias."""
    width, height, left, bottom, edge = 560, 340, 64, 52, 18
    xs, ys = [p["text"] for p in points], [p["identity"] for p in points]
    (x0, x1), (y0, y1) = _range(xs), _range(ys)

    def at(point: Mapping[str, Any]) -> tuple[float, float]:
        x = left + (width - left - edge) * (point["text"] - x0) / (x1 - x0)
        y = (height - bottom) - (height - bottom - edge) * (point["identity"] - y0) / (y1 - y0)
        return x, y

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + (width - left - edge) * share
        y = (height - bottom) - (height - bottom - edge) * share
        parts.append(_grid_line(x, edge, x, height - bottom))
        parts.append(_grid_line(left, y, width - edge, y))
        parts.append(_text(x, height - bottom + 18, f"{x0 + (x1 - x0) * share:.3f}", "middle"))
        parts.append(_text(left - 8, y + 4, f"{y0 + (y1 - y0) * share:.3f}", "end"))
    across = "follows the prompt (text score) →"
    parts.append(_text((left + width) / 2, height - 8, across, "middle", "label"))
    parts.append(
        f'<text class="label" transform="translate(14 {(height - bottom + edge) / 2:.0f}) '
        'rotate(-90)" text-anchor="middle">like the pictures (identity score) →</text>'
    )
    line = [p for p in points if p["bias"] is not None]
    if len(line) > 1:
        path = " ".join("{:.1f},{:.1f}".format(*at(p)) for p in line)
        parts.append(f'<polyline class="line" points="{path}"/>')
    for point in points:
        x, y = at(point)
        bias = point["bias"]
        told = f"identity {point['identity']:.3f}, text {point['text']:.3f}"
        if bias is None:
            parts.append(
                f'<path class="word" d="M{x:.1f} {y - 8:.1f} l8 8 l-8 8 l-8 -8 z">'
                f"<title>the ordinary word: {told}</title></path>"
            )
            parts.append(_text(x, y - 13, "the word", "middle", "label"))
            continue
        chosen = " best" if bias == best else ""
        parts.append(
            f'<circle class="point{chosen}" cx="{x:.1f}" cy="{y:.1f}" r="{8 if chosen else 5}">'
            f"<title>bias {bias:g}: {told}</title></circle>"
        )
        parts.append(_text(x + 11, y - 8, f"{bias:g}", "start", f"label{chosen}"))
    return _svg(width, height, parts, "Scores at each bias")


def gate_chart(gates: Mapping[str, Any]) -> str:
    """A bar for the gate of every word, for each concept: how far it turns into the concept."""
    words, names = gates["words"], gates["names"]
    row, label, bar, numbers = 20 * len(names) + 6, 130, 300, 190
    width, height = label + bar + numbers, row * len(words) + 8
    parts = []
    for n, (word, similarities, opened) in enumerate(
        zip(words, gates["similarities"], gates["gates"], strict=True)
    ):
        top = n * row + 4
        strong = " strong" if max(opened) > 0.5 else ""
        parts.append(_text(label - 10, top + row / 2, word, "end", f"label{strong}"))
        for c, (similarity, gate) in enumerate(zip(similarities, opened, strict=True)):
            y = top + c * 20 + 2
            hover = f"{word}: gate {gate:.3f} of {names[c]}, similarity {similarity:.3f}"
            place = f'x="{label}" y="{y}" height="14" rx="3"'
            parts.append(f'<rect class="track" {place} width="{bar}"/>')
            parts.append(
                f'<rect {place} width="{max(1.5, bar * gate):.1f}" '
                f'fill="{COLOURS[c % len(COLOURS)]}"><title>{html.escape(hover)}</title></rect>'
            )
            told = f"{gate:.2f}" + (f" {names[c]}" if len(names) > 1 else "")
            parts.append(_text(label + bar + 8, y + 11, f"{told}  (similarity {similarity:.2f})"))
    return _svg(width, height, parts, "Gates of a prompt")


def loss_chart(losses: Sequence[float], steps: int) -> str:
    """The loss over the steps."""
    if len(losses) < 2:
        return ""
    width, height, left, bottom = 360, 140, 52, 26
    top = max(losses) or 1.0
    points = " ".join(
        f"{left + (width - left - 8) * n / (len(losses) - 1):.1f},"
        f"{height - bottom - (height - bottom - 10) * value / top:.1f}"
        for n, value in enumerate(losses)
    )
    parts = [
        f'<line class="axis" x1="{left}" y1="{height - bottom}" x2="{width - 8}" '
        f'y2="{height - bottom}"/>',
        f'<polyline class="line" points="{points}"/>',
        _text(left - 8, 16, f"{top:.3f}", "end"),
        _text(left - 8, height - bottom, "0", "end"),
        _text(left, height - 8, "step 1"),
        _text(width - 8, height - 8, str(steps), "end"),
    ]
    return _svg(width, height, parts, "Loss of the training")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Bounds with a little room around some values."""
    low, high = min(values), max(values)
    room = max(0.12 * (high - low), 0.005)
    return low - room, high + room


def _grid_line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "tick") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    )
