"""Checks the types of the pack with mypy, by the settings in pyproject.toml.

    python -m tools.typecheck        part of `make lint`

The nodes reach perfusion_core by imports relative to the folder that holds both, whose name may be
no Python name. So it is linked under a fixed one, as for the import contracts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tools.imports import PACKAGE
from tools.locate import ROOT
from tools.server import link_folder

CHECKED = ("perfusion_core", "nodes")


def check(root: Path = ROOT) -> tuple[bool, str]:
    """Whether mypy passes the checkout at `root`, and what it says."""
    with tempfile.TemporaryDirectory(prefix="perfusion-types-") as folder:
        link_folder(Path(folder) / PACKAGE, root)
        options = ["--config-file", str(root / "pyproject.toml"), "--no-error-summary"]
        options += ["--cache-dir", str(root / ".mypy_cache")]
        done = subprocess.run(
            [sys.executable, "-m", "mypy", *options, *(f"{PACKAGE}/{part}" for part in CHECKED)],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    return done.returncode == 0, done.stdout + done.stderr


def main() -> int:
    passed, output = check()
    if not passed:
        print(output.replace(f"{PACKAGE}/", ""))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
