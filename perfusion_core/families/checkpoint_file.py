"""Which family a checkpoint on disk is of, by the shapes in its header: nothing else is read."""

from __future__ import annotations

import stat
from pathlib import Path

from ..concept.safetensors_file import NotSafetensors, read_header
from .families import FAMILIES, UNET_GROUPS, Family

# The host's largest checkpoints have headers of one or two megabytes.
MAX_HEADER = 32 << 20

# The parts of a UNet in the host's names and in those of diffusers; other networks have none.
_PARTS = {*UNET_GROUPS, "down_blocks", "mid_block", "up_blocks"}


def family_of_checkpoint(path: Path) -> Family | None:
    """The family of a model in a safetensors file, or None when the header does not tell.

    A family is told by the width of the text that enters the keys of cross-attention. Other
    formats, and models without such layers, give None: only loading them would tell. Raises
    OSError when the file cannot be read.
    """
    by_width = {family.context_width: family for family in FAMILIES.values()}
    keys = {f"{f.attention.layer}.{f.attention.key}.weight" for f in FAMILIES.values()}
    widths = {
        shape[1]
        for name, shape in _shapes(path).items()
        if len(shape) == 2
        and any(name.endswith(f".{key}") for key in keys)
        and not _PARTS.isdisjoint(name.split("."))
    }
    return by_width.get(widths.pop()) if len(widths) == 1 else None


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
