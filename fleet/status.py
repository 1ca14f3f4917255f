"""The commands `status` and `retry`, which need nothing but Python: so they answer at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import FleetError
from .ledger import JobState, Ledger
from .manifest import ledger_of
from .report import status_text


def status(options: argparse.Namespace) -> int:
    """Say what is done, underway and failed."""
    print(status_text(_existing(options.ledger)))
    return 0


def retry(options: argparse.Namespace) -> int:
    """Open failed jobs again."""
    ledger = _existing(options.ledger)
    opened = []
    for job in list(ledger.names("failed")):
        name = ledger.figures(JobState.FAILED, job).get("name", job)
        if not options.names or name in options.names:
            ledger.retry(job)
            opened.append(name)
    unknown = set(options.names) - set(opened)
    if unknown:
        raise FleetError(f"{', '.join(sorted(unknown))}: no failed job is called so")
    print(f"{len(opened)} jobs are open again{': ' if opened else ''}{', '.join(opened)}")
    return 0


def _existing(path: Path) -> Ledger:
    root = ledger_of(path)
    if not (root / "ledger.json").is_file():
        raise FleetError(f"there is no ledger in {root} yet: train makes it")
    return Ledger(root)
