"""The pictures of the world's concepts that come with the pack, to learn from without a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).with_name("concepts")


def names() -> list[str]:
    """The concepts that there are pictures of."""
    return sorted(path.parent.name for path in FOLDER.glob("*/concept.json"))


def pictures(name: str) -> Tensor:
    """A concept's pictures as ComfyUI's IMAGE [N, H, W, 3], 0 to 1.

    Raises ValueError for a name that there is no folder of.
    """
    from PIL import Image

    if name not in names():
        raise ValueError(f'there are no pictures of "{name}"; there are of {", ".join(names())}')
    found = []
    for path in sorted((FOLDER / name).glob("*.png")):
        image = Image.open(path).convert("RGB")
        data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        found.append(data.reshape(image.height, image.width, 3).float() / 255)
    return torch.stack(found)
