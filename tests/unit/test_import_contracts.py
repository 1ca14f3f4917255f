"""The import contracts of pyproject.toml: kept by this checkout, and broken by what they forbid."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.imports import check

pytest.importorskip("importlinter")

PARTS = ("perfusion_core", "nodes", "demo", "fleet", "lab", "tools")


@pytest.fixture
def copy(repo: Path, tmp_path: Path) -> Path:
    """The Python of this checkout, to break."""
    for part in ("pyproject.toml", "__init__.py", *PARTS):
        for source in [repo / part] if "." in part else (repo / part).rglob("*.py"):
            target = tmp_path / source.relative_to(repo)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return tmp_path


def test_this_checkout_keeps_its_contracts(repo: Path) -> None:
    kept, said = check(repo)
    assert kept, said


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("perfusion_core/method/edit.py", "from ..lab import judge"),
        ("nodes/demo_model.py", "from lab.judge import Judge"),
        ("demo/model.py", "from tools.locate import ROOT"),
        ("perfusion_core/learn/session.py", "from fleet.ledger import Ledger"),
        ("fleet/ledger.py", "from lab.judge import Judge"),
        ("fleet/run.py", "import ray"),
        ("nodes/demo_model.py", "from demo.examples import names"),
        ("perfusion_core/method/edit.py", "from ..nodes import types"),
        ("perfusion_core/method/edit.py", "import comfy.ops"),
        ("perfusion_core/concept/concept.py", "from ..comfy import stack"),
        ("perfusion_core/comfy/stack.py", "from ..learn import session"),
        ("perfusion_core/method/training.py", "def late():\n    from comfy_execution import graph"),
    ],
)
def test_a_forbidden_import_is_found_and_named(copy: Path, file: str, line: str) -> None:
    with (copy / file).open("a", encoding="utf-8") as source:
        source.write(f"\n\n{line}\n")
    kept, said = check(copy)
    assert not kept
    assert f"perfusion_pack.{file.removesuffix('.py').replace('/', '.')} ->" in said
