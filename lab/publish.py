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


# What must be the same of two runs to stand in one table.
SAME = ("subjects", "pictures_a_point", "steps", "batch", "identity", "world")


def publish(out: Path, docs: Path = DOCS) -> int:
    """Copy a run's results from `out`, in place of those before; returns the pictures' bytes.

    Of a run of some parts alone (`--only`), these take the place of the same ones, and all else
    stays.

    Raises ValueError when the pictures are too large for a repository, or a part does not go with
    what is there.
    """
    found = json.loads((out / "lab.json").read_text(encoding="utf-8"))
    fresh = found["plots"]
    if found.get("only") and (docs / "lab.json").is_file():
        found = _with_parts(json.loads((docs / "lab.json").read_text(encoding="utf-8")), found)
    sizes = [((out if plot in fresh else docs) / plot).stat().st_size for plot in found["plots"]]
    size = sum(sizes)
    if size > BUDGET:
        raise ValueError(f"the pictures have {size:,} bytes, more than the {BUDGET:,} they may")
    docs.mkdir(parents=True, exist_ok=True)
    for before in docs.glob("lab_*"):
        if before.name in fresh or before.name not in found["plots"]:
            before.unlink()
    for plot in fresh:
        shutil.copyfile(out / plot, docs / plot)
    write_atomic(docs / "lab.json", json.dumps(found, indent=1) + "\n")
    write_atomic(docs / "results.md", results(found))
    return size


def _with_parts(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What was published, with the parts of another run, which say of which."""
    unlike = [name for name in SAME if before.get(name) != found.get(name)]
    if unlike:
        raise ValueError(
            f"a part of another kind of run cannot be published beside what is in docs/lab: "
            f"{', '.join(unlike)} differ. Publish a whole run (without --only)."
        )
    run = {name: found[name] for name in ("command", "date", "machine")}
    parts = {ablation["name"]: {**ablation, "run": run} for ablation in found["ablations"]}
    ablations = {ablation["name"]: ablation for ablation in before["ablations"]} | parts
    plots = [plot for plot in found["plots"] if plot not in before["plots"]]
    merged = {**before, "ablations": list(ablations.values()), "plots": [*before["plots"], *plots]}
    if found["methods"]:
        merged |= {name: found[name] for name in ("methods", "comparison")} | {"methods_run": run}
    merged |= {part: found[part] for part in ("unused", "curves") if found.get(part)}
    return merged
