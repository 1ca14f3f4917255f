"""What the pages say of the code: the table of families, the tests of other packs, the links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perfusion_core.families import FAMILIES, REFUSED
from tools.models_page import families_table, with_table


def test_the_table_of_families_is_the_codes(repo: Path) -> None:
    text = (repo / "docs" / "models.md").read_text(encoding="utf-8")
    assert with_table(text) == text, "the code has changed: run `python -m tools.models_page`"


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


def test_a_page_without_the_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="once each"):
        with_table("# Perfusion")


def test_every_other_pack_named_has_its_test(repo: Path) -> None:
    text = (repo / "docs" / "other-packs.md").read_text(encoding="utf-8")
    table = text.split("<!-- companions -->")[1].split("<!-- /companions -->")[0]
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", table)
    assert len(named) == len(table.strip().splitlines()) - 2
    for file, test in named:
        source = (repo / "tests" / "comfyui" / file).read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file} has no {test}"


LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def test_every_link_of_the_pages_leads_somewhere(repo: Path) -> None:
    pages = [repo / "README.md", repo / "CONTRIBUTING.md", *sorted((repo / "docs").rglob("*.md"))]
    broken = [
        f"{page.relative_to(repo)}: {link}"
        for page in pages
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link and "issues/new" not in link and not (page.parent / link).exists()
    ]
    assert not broken


def test_every_page_is_in_the_index(repo: Path) -> None:
    index = (repo / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (repo / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
