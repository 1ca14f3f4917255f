"""The README's table of families says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perfusion_core.families import FAMILIES, REFUSED
from tools.readme import families_table, with_table


def test_the_table_in_the_readme_is_the_codes(repo: Path) -> None:
    text = (repo / "README.md").read_text(encoding="utf-8")
    assert with_table(text) == text, "the code has changed: run `python -m tools.readme`"


def test_every_supported_family_has_its_row_and_the_rest_two_lines() -> None:
    rows = families_table().splitlines()
    assert len(rows) == 2 + len(FAMILIES) + 2
    assert len({row.count("|") for row in rows}) == 1
    for family in FAMILIES.values():
        (row,) = [r for r in rows if f"`{family.id}`" in r]
        assert family.title in row
        assert str(family.context_width) in row
        assert row.endswith("| supported |")
    not_yet, refused = rows[-2:]
    named = set(re.findall(r"`(\w+)`", not_yet))
    assert named == {name for name, refusal in REFUSED.items() if refusal.attention}
    assert f"({len(REFUSED) - len(named)} kinds" in refused


def test_a_readme_without_the_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="once each"):
        with_table("# Perfusion")


def test_every_companion_in_the_readme_has_its_test(repo: Path) -> None:
    text = (repo / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- companions -->")[1].split("<!-- /companions -->")[0]
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", table)
    assert len(named) == len(table.strip().splitlines()) - 2
    for file, test in named:
        source = (repo / "tests" / "comfyui" / file).read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file} has no {test}"
