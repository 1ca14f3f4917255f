"""What set-up is about to download, said before it does, and whether the disk has room for it."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.steps import SetupError, say


@dataclass(frozen=True)
class Download:
    """How large an environment is, in GB.

    Attributes:
        fetched: what comes from PyPI; nothing where pip has it in its cache.
        disk: what it takes once it is made.
    """

    fetched: float
    disk: float


# Measured on Linux with Python 3.11 (November 2026), the sum of what pip downloaded and the folder
# that came of it. PyPI has torch for Linux on x86-64 with CUDA alone, as one matching set with
# torchvision and torchaudio; that is four fifths. For Windows and macOS it has builds for the CPU
# (and Apple's GPU): there it is the rest, and torch's own 0.1.
_WITH_CUDA = {"comfyui": Download(2.0, 6.3), "unit": Download(1.8, 4.8)}
_WITHOUT = {"comfyui": Download(0.6, 2.1), "unit": Download(0.3, 0.8)}


def size_of(kind: str, system: str = sys.platform, machine: str = "") -> Download:
    """Of the environment "comfyui" or "unit" on a system."""
    cuda = system == "linux" and (machine or platform.machine()) in ("x86_64", "AMD64")
    return (_WITH_CUDA if cuda else _WITHOUT)[kind]


def announce(kind: str, what: str, home: Path) -> None:
    """Say what will be downloaded and how large it is, before it is.

    Raises SetupError where the disk has no room for it.
    """
    size = size_of(kind)
    cuda = " (torch for CUDA is most of it: PyPI has no other for Linux)" if size.disk > 4 else ""
    say(
        f"set-up will download about {size.fetched:g} GB from PyPI: {what}{cuda}. It takes "
        f"{size.disk:g} GB of disk in {home}, once; `python -m tools clean --all` deletes it"
    )
    folder = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(folder).free / 1e9
    if free < size.disk:
        raise SetupError(
            f"there are {free:.1f} GB free in {folder}, and {size.disk:g} GB are needed: free some "
            "space, or name another folder in PERFUSION_COMFYUI_DIR"
        )
