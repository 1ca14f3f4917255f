"""Puts what a run of the lab left into `docs/lab/`: lab.json, its plots, and results.md of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.locate import ROOT
from tools.steps import write_atomic

from .tables import tables

DOCS = ROOT / "docs" / "lab"
BUDGET = 1_500_000  # bytes of all pictures: they stay in the repository for good


def results(found: Mapping[str, Any]) -> str:
    """The page results.md of the contents of lab.json."""
    return (
        "# What the lab measured\n\n"
        "Written by `make lab ARGS=--publish` from [lab.json](lab.json), not by hand. How it is "
        f"measured: [the quality lab](../lab.md).\n\n{tables(found)}"
    )


def publish(out: Path, docs: Path = DOCS) -> int:
    """Copy a run's results from `out`, in place of those before; returns the pictures' bytes.

    Raises ValueError when the pictures are too large for a repository.
    """
    text = (out / "lab.json").read_text(encoding="utf-8")
    found = json.loads(text)
    size = sum((out / plot).stat().st_size for plot in found["plots"])
    if size > BUDGET:
        raise ValueError(f"the pictures have {size:,} bytes, more than the {BUDGET:,} they may")
    docs.mkdir(parents=True, exist_ok=True)
    for before in docs.glob("lab_*"):
        before.unlink()
    for plot in found["plots"]:
        shutil.copyfile(out / plot, docs / plot)
    write_atomic(docs / "lab.json", text)
    write_atomic(docs / "results.md", results(found))
    return size
