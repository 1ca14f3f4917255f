"""What users of the Comfy Registry get: the files in git that .comfyignore does not name.

    python -m tools.archive [FILE.zip]        says how many and how large; writes them if asked

`comfy node publish` packs the same files.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tools.locate import ROOT

IGNORED = ("--ignored", "--exclude-from=.comfyignore")


def shipped(root: Path = ROOT) -> list[str]:
    """The files of the checkout at `root` that users get, by their paths in it."""
    left_out = set(_tracked(root, *IGNORED))
    return [name for name in _tracked(root) if name not in left_out and (root / name).is_file()]


def write(archive: Path, names: Sequence[str], root: Path = ROOT) -> None:
    """Pack files of the checkout at `root` into a zip file."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.write(root / name, name)


def _tracked(root: Path, *options: str) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", *options]
    done = subprocess.run(command, capture_output=True, check=True)
    return [name for name in done.stdout.decode().split("\0") if name]


def main(arguments: Sequence[str]) -> int:
    names = shipped()
    size = sum((ROOT / name).stat().st_size for name in names)
    print(f"{len(names)} files, {size:,} bytes")
    if arguments:
        archive = Path(arguments[0])
        write(archive, names)
        print(f"{archive}: {archive.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
