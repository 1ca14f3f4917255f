"""Which family a checkpoint on disk is of, by the shapes in its header: nothing else is read."""

from __future__ import annotations

import stat
from pathlib import Path

from ..concept.safetensors_file import NotSafetensors, read_header
from . import FAMILIES, ModelFamily

# ComfyUI's largest checkpoints have headers of one or two megabytes.
MAX_HEADER = 32 << 20


def family_of_checkpoint(path: Path) -> ModelFamily | None:
    """The family of a model in a safetensors file, or None when the header does not tell.

    Other formats, and models that no family recognises, give None: only loading them would tell.
    Raises OSError when the file cannot be read.
    """
    shapes = _shapes(path)
    found = [family for family in FAMILIES.values() if family.recognises_file(shapes)]
    return found[0] if len(found) == 1 else None


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a safetensors file; nothing for any other file."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait
        return {}
    with path.open("rb") as file:
        try:
            header = read_header(file, MAX_HEADER)
        except NotSafetensors:
            return {}
    return {name: entry.shape for name, entry in header.tensors.items()}
