"""PixArt: a transformer over the cells of the latents, with the text in `cross_attn`.

Its keys and values are the halves of what one projection gives. Every row of T5's text passes
through a small network (`y_embedder`) within the forward, and all rows of a batch then lie one
after the other; what is edited is the text before that. ComfyUI leaves pads and their mask out, so
a prompt is as long as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .base import CrossAttention, ModelFamily

ATTENTION = CrossAttention(
    "cross_attn",
    "kv_linear",
    "kv_linear",
    query="q_linear",
    heads="num_heads",
    bias=True,
    before="y_embedder.y_proj",
)

# Counted on one of its 28 blocks, at 512 pixels: 3,490 bytes.
KEPT = 98_000

# The part that only PixArt-alpha has: it reads the size of the picture.
_SIZES = "ar_embedder"


@dataclass(frozen=True, kw_only=True)
class PixArtFamily(ModelFamily):
    """PixArt's network.

    Attributes:
        sizes: whether it reads the size of the picture.
    """

    sizes: bool
    network: str = "PixArtMS"
    attention: CrossAttention = ATTENTION
    blocks: tuple[str, ...] = ("PixArtMSBlock",)
    context: str = "y"
    joins: bool = False
    patch: int = 2
    prompt: int = 40

    def recognises(self, network: Any) -> bool:
        """See `ModelFamily`."""
        return super().recognises(network) and hasattr(network, _SIZES) == self.sizes

    def recognises_file(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """See `ModelFamily`."""
        layers = self.widths_in_file(shapes, "blocks.0.cross_attn.kv_linear.weight")
        texts = self.widths_in_file(shapes, "y_embedder.y_proj.fc1.weight")
        sizes = any(_SIZES in name.split(".") for name in shapes)
        return bool(layers) and texts == {self.context_width} and sizes == self.sizes

    def has_part(self, name: str) -> bool:
        """See `ModelFamily`."""
        return "blocks" in name.split(".")


PIXART_ALPHA = PixArtFamily(
    id="pixart_alpha",
    title="PixArt-alpha",
    encoders={"t5xxl": 4096},
    sizes=True,
    resolution=1024,
    kept=KEPT,
    kept_text=80,
)
PIXART_SIGMA = PixArtFamily(
    id="pixart_sigma",
    title="PixArt-sigma",
    encoders={"t5xxl": 4096},
    sizes=False,
    resolution=1024,
    kept=KEPT,
    kept_text=80,
)
