"""Checks the import contracts of pyproject.toml with import-linter: what may import what.

    python -m tools.imports        part of `make lint`

The pack is one package, whose name is that of the folder it lies in. So it is linked under a fixed
name, by which the contracts call it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tools.locate import ROOT
from tools.server import link_folder

PACKAGE = "perfusion_pack"
_LINT = "from importlinter.cli import lint_imports_command as lint; lint()"


def check(root: Path = ROOT) -> tuple[bool, str]:
    """Whether the checkout at `root` keeps its contracts, and what import-linter says."""
    with tempfile.TemporaryDirectory(prefix="perfusion-imports-") as folder:
        link_folder(Path(folder) / PACKAGE, root)
        config = str(root / "pyproject.toml")
        done = subprocess.run(
            [sys.executable, "-c", _LINT, config, "--no-cache", "--no-logo"],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    return done.returncode == 0, done.stdout + done.stderr


def main() -> int:
    kept, said = check()
    if not kept:
        print(said)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
