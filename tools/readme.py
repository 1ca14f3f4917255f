"""The README's table of model families, written from the code: `python -m tools.readme`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from perfusion_core.families import FAMILIES, REFUSED, CrossAttention
from tools.locate import ROOT
from tools.steps import say, write_atomic

README = ROOT / "README.md"
BEGIN, END = "<!-- families -->", "<!-- /families -->"
HEAD = ("models", "id", "text width", "keys and values", "status")


def families_table() -> str:
    """What is supported, what is not yet, and what is refused and why; one row each."""
    rows = [HEAD, ("---",) * len(HEAD), *_supported(), *_not_yet(), *_refused()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _supported() -> Iterator[tuple[str, ...]]:
    for family in FAMILIES.values():
        parts = " + ".join(map(str, family.encoders.values()))
        joined = f" ({parts})" if len(family.encoders) > 1 else ""
        width = f"{family.context_width}{joined}"
        where = _projections(family.attention)
        yield family.title, f"`{family.id}`", width, where, "supported"


def _not_yet() -> Iterator[tuple[str, ...]]:
    for name, refusal in REFUSED.items():
        if refusal.attention is not None:
            yield f"ComfyUI's `{name}`", "", "", _projections(refusal.attention), "not yet"


def _refused() -> Iterator[tuple[str, ...]]:
    reasons: dict[str, list[str]] = {}
    for name, refusal in REFUSED.items():
        if refusal.attention is None:
            reasons.setdefault(refusal.reason, []).append(f"`{name}`")
    for reason, names in reasons.items():
        yield f"ComfyUI's {', '.join(names)}", "", "", "", f"refused: {reason}"


def _projections(where: CrossAttention) -> str:
    fused = f"`{where.layer}.{where.key}` (both in one)"
    text = fused if where.fused else f"`{where.layer}.{where.key}`, `{where.value}`"
    notes = ["with bias"] if where.bias else []
    notes += [f"keys normed by `{where.key_norm}`"] if where.key_norm else []
    notes += [f"text through `{where.before}`"] if where.before else []
    return "; ".join([text, *notes])


def with_table(text: str) -> str:
    """A README's text with the table between its markers as the code says it."""
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    replaced, count = between.subn(lambda _: f"{BEGIN}\n{families_table()}\n{END}", text)
    if count != 1:
        raise ValueError(f"the README must have {BEGIN} and {END} once each")
    return replaced


def main() -> None:
    write_atomic(README, with_table(README.read_text(encoding="utf-8")))
    say(f"the table of families in {README} is as the code says")


if __name__ == "__main__":
    main()
