"""The family of a checkpoint from its header."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from perfusion_core.families.checkpoint_file import family_of_checkpoint

UNET = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0"


def checkpoint(path: Path, *keys: tuple[str, int]) -> Path:
    save_file({name: torch.zeros(4, width) for name, width in keys}, path)
    return path


@pytest.mark.parametrize(
    ("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (192, "emoji"), (4096, None)]
)
def test_the_text_width_tells(tmp_path: Path, width: int, family: str | None) -> None:
    path = checkpoint(
        tmp_path / "a.safetensors",
        (f"{UNET}.attn1.to_k.weight", 320),
        (f"{UNET}.attn2.to_k.weight", width),
        ("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", width),
    )
    found = family_of_checkpoint(path)
    assert (found and found.id) == family


def test_what_does_not_tell_is_none(tmp_path: Path) -> None:
    mixed = checkpoint(
        tmp_path / "mixed.safetensors",
        (f"{UNET}.attn2.to_k.weight", 768),
        (f"{UNET}.1.attn2.to_k.weight", 1024),
    )
    # A network of another kind whose layers have the same last names.
    other = checkpoint(
        tmp_path / "dit.safetensors", ("transformer_blocks.0.attn2.to_k.weight", 2048)
    )
    assert family_of_checkpoint(mixed) is None
    assert family_of_checkpoint(other) is None


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"\xff" * 64, (8).to_bytes(8, "little") + b"no json!", b"\x00" * 9]
)
def test_other_files_are_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(data)
    assert family_of_checkpoint(path) is None


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        family_of_checkpoint(tmp_path / "none.safetensors")
