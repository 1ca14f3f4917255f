"""The emoji world: the small UNet that comes with the pack (demo/)."""

from __future__ import annotations

from .captions import emoji_captions
from .unet import UNetFamily

EMOJI = UNetFamily(
    id="emoji",
    title="the emoji world of the demo",
    encoders={"clip_l": 192},
    resolution=128,
    kept=157_000,  # as much as the largest of the others: its memory is no one's worry
    captions=emoji_captions,
)
