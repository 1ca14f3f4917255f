"""From the host's IMAGE, MASK and VAE to what training takes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..training import TrainingError

PREVIEW_SIZE = 96
PREVIEW_QUALITY = 75


def join_pictures(batches: Sequence[Tensor | None]) -> Tensor:
    """One batch [N, H, W, 3] of a list of the host's IMAGEs [B, H, W, C].

    Raises TrainingError when there is no picture or they differ in size.
    """
    given = [batch for batch in batches if batch is not None and len(batch)]
    if not given:
        raise TrainingError(
            "There is no training picture: connect images to train from (4 to 6 are good)."
        )
    sizes = {(batch.shape[2], batch.shape[1]) for batch in given}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise TrainingError(
            f"The training pictures have different sizes ({listed}). Bring them to one size first, "
            'for example with Upscale Image, crop "center", to the size of pictures that the model '
            "was made for."
        )
    return torch.cat([batch[..., :3] for batch in given])


def join_masks(batches: Sequence[Tensor | None], pictures: Tensor) -> Tensor | None:
    """Masks [N, H, W] for pictures [N, H, W, 3], or None; a single mask serves all pictures."""
    given = [batch.reshape(-1, *batch.shape[-2:]) for batch in batches if batch is not None]
    if not given:
        return None
    size = pictures.shape[1:3]
    masks = torch.cat(
        [
            batch.float()
            if batch.shape[1:] == size
            else torch.nn.functional.interpolate(batch.float()[:, None], size=size, mode="area")[
                :, 0
            ]
            for batch in given
        ]
    )
    if len(masks) == 1:
        masks = masks.expand(len(pictures), -1, -1)
    if len(masks) != len(pictures):
        raise TrainingError(
            f"There are {len(masks)} masks for {len(pictures)} pictures: give one mask for each "
            "picture, or a single one for all."
        )
    return masks


def picture_latents(vae: Any, pictures: Tensor) -> Tensor:
    """Latents [N, C, h, w] of pictures [N, H, W, 3], one at a time to keep memory low."""
    return torch.cat([vae.encode(picture[None]) for picture in pictures])


def thumbnail(picture: Tensor) -> bytes:
    """A small JPEG of a picture [H, W, 3], for a concept's preview."""
    from PIL import Image

    array = (picture.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    image = Image.fromarray(array)
    image.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=PREVIEW_QUALITY)
    return buffer.getvalue()
