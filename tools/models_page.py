"""Writes the table of families in docs/models.md from the code: `python -m tools.models_page`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from perfusion_core.families import FAMILIES, REFUSED
from tools.locate import ROOT
from tools.steps import say, write_atomic

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- families -->", "<!-- /families -->"
HEAD = ("models", "id", "text width", "status")


def families_table() -> str:
    """A row for each supported family, one for those to come, one for all others."""
    rows = [HEAD, ("---",) * len(HEAD), *_supported(), _not_yet(), _refused()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _supported() -> Iterator[tuple[str, ...]]:
    for family in FAMILIES.values():
        parts = " + ".join(map(str, family.encoders.values()))
        joined = f" ({parts})" if len(family.encoders) > 1 else ""
        yield family.title, f"`{family.id}`", f"{family.context_width}{joined}", "supported"


def _not_yet() -> tuple[str, ...]:
    names = [f"`{name}`" for name, refusal in REFUSED.items() if refusal.attention]
    return f"ComfyUI's {', '.join(names)}", "", "", "not yet: their attention could carry concepts"


def _refused() -> tuple[str, ...]:
    count = sum(refusal.attention is None for refusal in REFUSED.values())
    others = "all others that ComfyUI knows (Flux, SD3, Qwen-Image, Z-Image ...)"
    return others, "", "", f"refused: the error says why ({count} kinds, each judged by its code)"


def with_table(text: str) -> str:
    """A page's text with the table between its markers as the code says it."""
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    replaced, count = between.subn(lambda _: f"{BEGIN}\n{families_table()}\n{END}", text)
    if count != 1:
        raise ValueError(f"the page must have {BEGIN} and {END} once each")
    return replaced


def main() -> None:
    write_atomic(PAGE, with_table(PAGE.read_text(encoding="utf-8")))
    say(f"the table of families in {PAGE} is as the code says")


if __name__ == "__main__":
    main()
